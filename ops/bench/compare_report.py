"""What a comparison says: its figures, the ratios of their medians, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ops.bench.burst import Burst
from ops.bench.completions import Outcome
from ops.bench.report import over_rounds, ratios, shown, table
from ops.bench.sending import burst_of, errors_of, latencies
from ops.bench.workload import Traffic

HEADINGS = {
    "output_tok_s": "output tok/s",
    "decode_tok_s": "decode tok/s",
    "prefill_tok_s": "prefill tok/s",
    "ttft_ms": "TTFT ms",
    "itl_ms": "ITL ms",
}
BURST_FIGURES = ("output_tok_s", "decode_tok_s", "ttft_ms", "itl_ms")
PREFILL_FIGURES = ("prefill_tok_s", "ttft_ms")


@dataclass(frozen=True, slots=True)
class Shape:
    """Requests at once: bursts whose decoding counts, or one prompt whose reading does."""

    streams: int
    traffic: Traffic
    figures: tuple[str, ...]

    @property
    def label(self) -> dict[str, int]:
        """Its keys in the results."""
        if self.figures == PREFILL_FIGURES:
            return {"prefill_tokens": self.traffic.prompt_tokens}
        return {"streams": self.streams}

    def __str__(self) -> str:
        [(key, value)] = self.label.items()
        return f"{key.replace('_', ' ')} {value}"


@dataclass(frozen=True, slots=True)
class Measured:
    """One turn: what became of the requests, and cores that idle contenders kept busy."""

    outcomes: list[Outcome]
    others_busy_cores: float

    @property
    def burst(self) -> Burst:
        """Its timing."""
        return burst_of(self.outcomes)


def figure_of(key: str, burst: Burst, shape: Shape) -> float | None:
    """One figure of one burst; times are of the median stream, or of the median gap."""
    first_s, gaps_s = burst.first_token_s(), burst.gaps_s()
    if not first_s:
        return None  # all failed
    if key == "prefill_tok_s":
        return shape.streams * shape.traffic.prompt_tokens / max(first_s)
    if key == "ttft_ms":
        return median(first_s) * 1e3
    if key == "itl_ms":
        return median(gaps_s) * 1e3 if gaps_s else None
    return burst.output_tok_s if key == "output_tok_s" else burst.decode_tok_s


def result_of(shape: Shape, measured: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    """The result of one shape; the first contender is ours."""
    figures = {name: _figures(shape, rounds) for name, rounds in measured.items()}
    own, *peers = figures
    return {
        **shape.label,
        "contenders": figures,
        "ratio": {peer: ratios(figures[own], figures[peer], shape.figures) for peer in peers},
        "errors": sum(one["errors"] for one in figures.values()),
    }


def _figures(shape: Shape, rounds: Sequence[Measured]) -> dict[str, Any]:
    outcomes = [outcome for one in rounds for outcome in one.outcomes]
    over_all = latencies([one.burst for one in rounds])
    lengths = {one.prompt_tokens for one in outcomes if one.prompt_tokens is not None}
    return {
        **{
            key: over_rounds([figure_of(key, one.burst, shape) for one in rounds])
            for key in shape.figures
        },
        "ttft_p99_ms": over_all["ttft_ms"]["p99"],
        "itl_p99_ms": over_all["itl_ms"]["p99"],
        "prompt_tokens": sorted(lengths),  # as the server counts them
        "output_tokens": [one.burst.num_tokens for one in rounds],
        "others_busy_cores": over_rounds([one.others_busy_cores for one in rounds]),
        **errors_of(outcomes),
    }


def table_of(shapes: Sequence[Shape], results: Sequence[Mapping[str, Any]]) -> str:
    """A line for every figure of every shape."""
    names = list(results[0]["contenders"])
    rows = [
        [
            str(shape),
            HEADINGS[key],
            *(shown(result["contenders"][name][key]) for name in names),
            *(shown(result["ratio"][peer].get(key)) for peer in names[1:]),
        ]
        for shape, result in zip(shapes, results, strict=True)
        for key in shape.figures
    ]
    header = ["", "", *names, *(f"ratio to {peer}" for peer in names[1:])]
    return f"{table(header, rows)}\nmedian (min-max) over rounds; ratio of medians, ours to theirs"
