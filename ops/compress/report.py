"""What a compression did, as numbers and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from ops.compress.allocation import Shape
from ops.compress.records import Missed


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Of the matrices of one layer that were to be compressed."""

    layer: int
    relative_error: float  # in the Frobenius norm, of all of them together, rounding included
    ranks: tuple[int, ...]  # of those that became factors, smallest first
    num_dense: int  # of those that stayed as they are
    parameters_removed: int


@dataclass(frozen=True, slots=True)
class PerplexityReport:
    """On the text that was given."""

    before: float
    after: float
    tokens: int


@dataclass(frozen=True, slots=True)
class CompressReport:
    """The whole of it."""

    source: str
    target: str
    parameters_before: int
    parameters_after: int
    parameters_removed: int
    layers: tuple[LayerReport, ...]
    perplexity: PerplexityReport | None  # None: no text was given
    took_s: float


def layer_of(name: str) -> int:
    """The layer of a matrix, by its name."""
    return int(name.split(".")[2])


def layer_reports(
    shapes: Mapping[str, Shape],
    ranks: Mapping[str, int | None],
    missed: Mapping[str, Missed],
) -> tuple[LayerReport, ...]:
    """One for each layer that has any of the matrices."""
    reports = []
    for layer in sorted({layer_of(name) for name in shapes}):
        names = [name for name in shapes if layer_of(name) == layer]
        norm = sum(missed[name].squared_norm for name in names)
        error = sum(missed[name].squared_error for name in names)
        held = [rank for name in names if (rank := ranks[name]) is not None]
        removed = sum(
            shapes[name].parameters(None) - shapes[name].parameters(ranks[name]) for name in names
        )
        reports.append(
            LayerReport(
                layer=layer,
                relative_error=math.sqrt(error / norm) if norm else 0.0,
                ranks=tuple(sorted(held)),
                num_dense=len(names) - len(held),
                parameters_removed=removed,
            )
        )
    return tuple(reports)


def as_json(report: CompressReport) -> str:
    """One JSON document; `perplexity` is null where it was not measured."""
    return json.dumps(asdict(report), indent=2)


def print_report(report: CompressReport, console: Console) -> None:
    """A table of the layers, and the totals below it."""
    table = Table("layer", "relative error", "rank", "left dense", "parameters removed")
    for one in report.layers:
        ranks = f"{one.ranks[0]} - {one.ranks[-1]}" if one.ranks else "-"
        table.add_row(
            str(one.layer),
            f"{one.relative_error:.4f}",
            ranks,
            str(one.num_dense),
            f"{one.parameters_removed:,}",
        )
    console.print(table)
    share = report.parameters_removed / report.parameters_before
    console.print(
        f"{report.parameters_before:,} parameters before, {report.parameters_after:,} after: "
        f"{report.parameters_removed:,} ({share:.1%}) removed"
    )
    if report.perplexity is None:
        console.print("perplexity was not measured: no --text")
    else:
        on = report.perplexity
        console.print(
            f"perplexity {on.before:.4f} before, {on.after:.4f} after ({on.tokens:,} tokens)"
        )
    console.print(f"{report.target} in {report.took_s:.0f} s")
