"""Groups of bars as a plain SVG, the same bytes for the same input.

Colours are such that it reads on white and on dark pages alike; there is no background.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

INK = "#797979"  # as far from white as from GitHub's dark page
COLOURS = ("#d1661f", "#2f81c4", "#8a63c9", "#2c8f5b", "#b8578f")
_LEFT, _TOP, _PLOT, _BOTTOM = 64, 56, 240, 48  # margins and the height of the plot
_BAR, _GAP, _LEAST_WIDTH = 56, 32, 480
_TICKS = 4


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure of one server: the median over rounds, and the least and most of them."""

    name: str
    median: float
    low: float
    high: float


def bar_chart(title: str, note: str, groups: Mapping[str, Sequence[Bar]]) -> str:
    """One group of bars for each key; bars of one name have one colour."""
    names = dict.fromkeys(bar.name for bars in groups.values() for bar in bars)
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    most = round_up(max(bar.high for bars in groups.values() for bar in bars))
    bars_width = sum(len(bars) * _BAR + _GAP for bars in groups.values()) + _GAP
    legend_width = sum(map(_legend_width, names))
    width = max(_LEFT + max(bars_width, legend_width), _LEAST_WIDTH)
    height = _TOP + _PLOT + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" fill="{INK}" role="img" '
        f"aria-label={quoteattr(title)}>",
        _text(_LEFT, 18, title, "start", 15),
        *_legend(colours),
        *_axis(most, width),
        *_bars(groups, colours, most),
        _text(_LEFT, height - 8, note, "start", 11),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8 or 10 times a power of ten, which four ticks divide well."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)


def _axis(most: float, width: int) -> Iterator[str]:
    for tick in range(_TICKS + 1):
        y = _y(tick / _TICKS)
        yield f'<path d="M{_LEFT} {y:.1f}H{width}" stroke="{INK}" stroke-opacity="0.35"/>'
        yield _text(_LEFT - 8, y + 4, f"{most * tick / _TICKS:g}", "end")


def _bars(
    groups: Mapping[str, Sequence[Bar]], colours: Mapping[str, str], most: float
) -> Iterator[str]:
    x = _LEFT + _GAP
    for label, bars in groups.items():
        yield _text(x + len(bars) * _BAR / 2, _y(0) + 18, label)
        for bar in bars:
            middle, top = x + _BAR / 2, _y(bar.median / most)
            yield (
                f'<rect x="{x + 4}" y="{top:.1f}" width="{_BAR - 8}" height="{_y(0) - top:.1f}" '
                f'fill="{colours[bar.name]}"><title>{escape(bar.name)}</title></rect>'
            )
            low, high = _y(bar.low / most), _y(bar.high / most)
            yield f'<path d="M{middle} {low:.1f}V{high:.1f}" stroke="{INK}" stroke-width="2"/>'
            yield _text(middle, high - 5, f"{bar.median:.3g}" if bar.median < 1e3 else
                        f"{bar.median:.0f}")  # fmt: skip
            x += _BAR
        x += _GAP


def _legend(colours: Mapping[str, str]) -> Iterator[str]:
    x = _LEFT
    for name, colour in colours.items():
        yield f'<rect x="{x}" y="30" width="12" height="12" fill="{colour}"/>'
        yield _text(x + 18, 40, name, "start")
        x += _legend_width(name)


def _legend_width(name: str) -> int:
    return 34 + 8 * len(name)


def _y(share: float) -> float:
    return _TOP + _PLOT * (1 - share)


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
