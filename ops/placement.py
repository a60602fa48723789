"""`windrose experts replicate` and its like: asks for a change, and shows what came of it."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.table import Table

from ops.client import ServerError, connect, post_change


class CopyLine(BaseModel):
    """One expert's weights of one layer on one rank."""

    layer: int
    expert: int
    rank: int


class PipelineLine(BaseModel):
    """What one pipeline did."""

    pipeline: str
    placement_version: int
    applied: bool
    reason: str
    added: list[CopyLine]
    dropped: list[CopyLine]
    took_s: float


class ChangeAnswer(BaseModel):
    """The body that answers a change."""

    pipelines: list[PipelineLine]
    refused: list[str] = []  # why other pipelines are as they were


def change_placement(
    url: str, api_key: str | None, name: str, body: Mapping[str, Any], *, as_json: bool
) -> int:
    """Ask for the change `name`, wait until it is in force, print it; returns the exit status.

    1 where some pipelines refused it: they differ from the others now.

    Raises:
        ServerError: the server does not answer, refuses, or is not Windrose.
    """
    path = f"/v1/experts/{name}"
    with connect(url, api_key) as client:
        answer = post_change(client, path, body)
    try:
        outcome = ChangeAnswer.model_validate(answer)
    except ValidationError as error:
        raise ServerError(f"{url}{path} did not answer as Windrose does") from error
    if as_json:
        print(json.dumps(answer, indent=2))
    else:
        for line in outcome.pipelines:
            print(summary(line))
        rows = [row for line in outcome.pipelines for row in copy_rows(line)]
        if rows:
            Console(markup=False, highlight=False).print(_table(rows))
    for reason in outcome.refused:
        print(f"windrose experts {name}: one pipeline refused: {reason}", file=sys.stderr)
    return 1 if outcome.refused else 0


def summary(line: PipelineLine) -> str:
    """What happened in a pipeline, in one line."""
    reason = " ".join(line.reason.split()).removesuffix(".")
    state = "now" if line.applied else "nothing changed, still"
    version = f"{state} placement version {line.placement_version}"
    return f"pipeline {line.pipeline}: {reason} ({version}, {line.took_s:.1f} s)"


def copy_rows(line: PipelineLine) -> list[tuple[str, ...]]:
    """Pipeline, what became of them, expert, layers and rank of the copies, layers together."""
    layers: dict[tuple[int, str, int], list[int]] = defaultdict(list)
    added, dropped = ("added", "dropped") if line.applied else ("to add", "to drop")
    for done, copies in ((added, line.added), (dropped, line.dropped)):
        for copy in copies:
            layers[copy.expert, done, copy.rank].append(copy.layer)
    return [
        (line.pipeline, done, str(expert), layer_ranges(layers[expert, done, rank]), str(rank))
        for expert, done, rank in sorted(layers)
    ]


def layer_ranges(layers: Iterable[int]) -> str:
    """The layers in order, neighbours as a range: 0-3,7."""
    ordered = sorted(set(layers))
    ranges = []
    for _, run in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0]):
        numbers = [layer for _, layer in run]
        ranges.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}")
    return ",".join(ranges)


def _table(rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table()
    for heading in ("pipeline", "copies", "expert", "layers", "rank"):
        right = heading in ("expert", "rank")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
