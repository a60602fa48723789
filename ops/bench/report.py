"""How results leave: a table for people on stderr, then one JSON line on stdout; or a file."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ops.bench import environment

RESULTS_DIR = Path(__file__).resolve().parents[1] / "results"

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


def ratios(
    own: Mapping[str, Any], other: Mapping[str, Any], figures: Sequence[str]
) -> dict[str, float]:
    """Own median over the other's, for every figure that both have."""
    return {
        key: rounded(own[key]["median"] / other[key]["median"])
        for key in figures
        if own[key] is not None and other[key] is not None
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


def emit(report: Report, results_dir: Path | None = None) -> None:
    """Print the text on stderr, then everything else as the last line of stdout.

    With a directory the line goes to `DATE-BENCH-MODEL-N-cores.json` there too, behind those of
    earlier runs of that day: no result overwrites another.
    """
    print(report.text, file=sys.stderr, flush=True)
    now = datetime.now(UTC)
    commit, dirty = environment.commit()
    hardware = environment.hardware()
    line = {
        "bench": report.bench,
        "commit": commit,
        "dirty": dirty,
        "date": now.isoformat(timespec="seconds"),
        "hardware": hardware,
        "versions": environment.versions(),
        "config": report.config,
        "results": report.results,
    }
    text = json.dumps(line, allow_nan=False)
    print(text, flush=True)
    if results_dir is not None:
        file = results_dir / file_name(report, now, hardware["cores"])
        results_dir.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(f"{text}\n")
        print(f"saved in {file}", file=sys.stderr, flush=True)


def file_name(report: Report, now: datetime, cores: int) -> str:
    """Of the file that this report is saved in."""
    model = str(report.config.get("model") or "").rstrip("/").rpartition("/")[2]
    parts = [f"{now:%Y-%m-%d}", report.bench, model, str(cores), "cores"]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(part for part in parts if part)) + ".json"
