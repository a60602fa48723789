"""How results leave: a table for people on stderr, then one JSON line on stdout."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ops.bench import environment

Summary = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found. Settings and results are JSON values; `text` is for people."""

    bench: str
    config: dict[str, Any]
    results: list[dict[str, Any]]
    text: str


def over_rounds(values: Sequence[float | None]) -> Summary | None:
    """Median, min and max of one figure, and its value in every round; None if it has none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {
        "median": rounded(statistics.median(known)),
        "min": rounded(min(known)),
        "max": rounded(max(known)),
        "rounds": [None if value is None else rounded(value) for value in values],
    }


def percentile_ms(values_s: Sequence[float], percent: float) -> float | None:
    """A percentile of times, in milliseconds; None of no times."""
    return rounded(float(np.percentile(values_s, percent)) * 1e3) if values_s else None


def rounded(value: float) -> float:
    """To five significant digits: the rest is noise."""
    return float(f"{value:.5g}")


def shown(figure: Summary | float | None) -> str:
    """One cell of a table: `median (min-max)` of a summary, "-" of nothing."""
    if figure is None:
        return "-"
    if isinstance(figure, dict):
        return f"{shown(figure['median'])} ({shown(figure['min'])}-{shown(figure['max'])})"
    return f"{figure:.0f}" if figure >= 1000 else f"{figure:.4g}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their headings, each as wide as it needs."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def emit(report: Report) -> None:
    """Print the text on stderr, then everything else as the last line of stdout."""
    print(report.text, file=sys.stderr, flush=True)
    commit, dirty = environment.commit()
    line = {
        "bench": report.bench,
        "commit": commit,
        "dirty": dirty,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": environment.hardware(),
        "versions": environment.versions(),
        "config": report.config,
        "results": report.results,
    }
    print(json.dumps(line, allow_nan=False), flush=True)
