"""How long streams stood still, and because of what. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ops.bench.report import rounded
from ops.chaos.load import Outcome
from ops.chaos.strike import Strike

SEVERAL = "several"
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Window:
    """From a strike until its recovery was over; of strikes that overlap, all in one."""

    cause: str
    num_strikes: int
    from_s: float
    until_s: float


def windows(strikes: Sequence[Strike], end_s: float) -> list[Window]:
    """In order of time. What was never over is taken to last until `end_s`."""
    found: list[Window] = []
    for strike in sorted(strikes, key=lambda one: one.at_s):
        until_s = end_s if strike.over_s is None else strike.over_s
        if found and strike.at_s <= found[-1].until_s:
            last = found.pop()
            until_s = max(last.until_s, until_s)
            found.append(Window(SEVERAL, last.num_strikes + 1, last.from_s, until_s))
        else:
            found.append(Window(strike.cause, 1, strike.at_s, until_s))
    return found


def spans(outcome: Outcome) -> Iterator[Span]:
    """From sending to the first tokens, then from event to event; of a failure, on to its end."""
    times_s = [outcome.sent_s, *outcome.event_times_s]
    if outcome.failure is not None:
        times_s.append(outcome.ended_s)
    yield from pairwise(times_s)


def longest_gap_s(outcome: Outcome, window: Window) -> float | None:
    """The longest wait that lies at least partly in the window; None where there is none."""
    if outcome.ended_s <= window.from_s or outcome.sent_s >= window.until_s:
        return None
    overlapping = [
        until_s - from_s
        for from_s, until_s in spans(outcome)
        if until_s > window.from_s and from_s < window.until_s
    ]
    return max(overlapping, default=None)


def gaps_by_cause(
    found: Sequence[Window], outcomes: Sequence[Outcome], calm: Sequence[Outcome]
) -> dict[str, dict[str, Any]]:
    """Per cause: strikes `n`, and p50, p99 and max over requests of the longest gap in a window.

    "calm" is over all gaps between events of calm requests, `n` of them; "calm longest" over the
    longest wait of each calm request, which is what the others compare with.
    """
    strikes: dict[str, int] = {}
    longest: dict[str, list[float]] = {}
    for window in found:
        strikes[window.cause] = strikes.get(window.cause, 0) + window.num_strikes
        gaps_s = (longest_gap_s(outcome, window) for outcome in outcomes)
        longest.setdefault(window.cause, []).extend(gap_s for gap_s in gaps_s if gap_s is not None)
    calm_spans = [list(spans(outcome)) for outcome in calm]
    between = [until_s - from_s for each in calm_spans for from_s, until_s in each[1:]]
    calm_longest = [
        max(until_s - from_s for from_s, until_s in each) for each in calm_spans if each
    ]
    summary = {
        "calm": _summary(len(between), between),
        "calm longest": _summary(len(calm_longest), calm_longest),
    }
    for cause in sorted(strikes):
        summary[cause] = _summary(strikes[cause], longest[cause])
    return summary


def _summary(count: int, gaps_s: Sequence[float]) -> dict[str, Any]:
    figures: list[float | None] = [None, None, None]
    if gaps_s:
        p50_s, p99_s = np.percentile(gaps_s, [50, 99])
        figures = [rounded(float(value)) for value in (p50_s, p99_s, max(gaps_s))]
    return {"n": count, **dict(zip(("p50_s", "p99_s", "max_s"), figures, strict=True))}
