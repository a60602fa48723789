"""`windrose experts`: who serves which expert, and how loaded each is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from ops.client import ServerError, connect, get_json

_BAR_CHARS = 24
Form = Literal["load", "repeats", "json"]


class ActorLine(BaseModel):
    """One actor in the body of GET /v1/experts."""

    pipeline: str
    rank: int | None
    role: str
    pid: int
    node: str
    device: str
    phase: str
    weights_bytes: int


class ExpertsBody(BaseModel):
    """The body of GET /v1/experts; `placement` and `tokens` are by [layer][expert]."""

    placement_version: int
    placement: list[list[list[int]]]
    actors: list[ActorLine]
    tokens: list[list[int]]
    balancedness: float
    repeat_rates: dict[str, list[float]] = {}  # by choice (first, any), by layer


@dataclass(frozen=True, slots=True)
class ExpertLine:
    """One expert: the ranks that hold it, and the tokens that chose it."""

    ranks: tuple[int, ...]
    tokens: int


def expert_lines(body: ExpertsBody, layer: int | None) -> list[ExpertLine]:
    """One line per expert, of one layer, or of all together (any layer's ranks, summed tokens).

    Raises:
        ValueError: there is no such layer.
    """
    num_layers = len(body.tokens)
    if layer is not None and not 0 <= layer < num_layers:
        those = f"the model has layers 0 to {num_layers - 1}" if num_layers else "it tells of none"
        raise ValueError(f"there is no layer {layer}: {those}")
    layers = range(num_layers) if layer is None else [layer]
    num_experts = len(body.tokens[0]) if body.tokens else 0
    return [
        ExpertLine(
            tuple(sorted({rank for i in layers for rank in body.placement[i][expert]})),
            sum(body.tokens[i][expert] for i in layers),
        )
        for expert in range(num_experts)
    ]


def show_experts(url: str, api_key: str | None, *, layer: int | None, form: Form) -> int:
    """Print who holds what, or the repeats, or the body as it came; returns the exit status.

    Raises:
        ServerError: the server does not answer, or not as Windrose.
        ValueError: the model has no such layer.
    """
    with connect(url, api_key) as client:
        answer = get_json(client, "/v1/experts")
    if form == "json":
        print(json.dumps(answer, indent=2))
        return 0
    try:
        body = ExpertsBody.model_validate(answer)
        expert_lines(body, layer)
    except (ValidationError, IndexError) as error:
        raise ServerError(f"{url}/v1/experts did not answer as Windrose does") from error
    console = Console(markup=False, highlight=False)
    if form == "repeats":
        console.print(_repeat_table(body))
        return 0
    console.print(expert_table(body, layer, ascii_only=console.options.ascii_only))
    console.print(_actor_table(body))
    return 0


def expert_table(body: ExpertsBody, layer: int | None, *, ascii_only: bool) -> Table:
    """Experts with their ranks and their load, as bars. ValueError: there is no such layer."""
    lines = expert_lines(body, layer)
    where = f"all {len(body.tokens)} layers" if layer is None else f"layer {layer}"
    total = sum(line.tokens for line in lines)
    most = max((line.tokens for line in lines), default=0)
    table = Table(
        title=f"Experts of {where}, placement version {body.placement_version}",
        caption=_caption(body, lines, layer),
    )
    for heading in ("expert", "ranks", "tokens", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("load", min_width=_BAR_CHARS + len(" hottest"))
    for expert, line in enumerate(lines):
        hottest = line.tokens == most > 0
        bar = ("#" if ascii_only else "█") * round(_BAR_CHARS * line.tokens / max(most, 1))
        table.add_row(
            str(expert),
            ",".join(map(str, line.ranks)),
            f"{line.tokens:,}",
            f"{line.tokens / max(total, 1):.1%}",
            bar + (" hottest" if hottest else ""),
            style="bold" if hottest else None,
        )
    return table


def _caption(body: ExpertsBody, lines: list[ExpertLine], layer: int | None) -> str:
    if not any(line.tokens for line in lines):
        return "no tokens yet"
    overall = f"balancedness (mean/max load): {body.balancedness:.2f} over all layers"
    if layer is None:
        return overall
    loads = [line.tokens for line in lines]
    return f"{overall}, {sum(loads) / len(loads) / max(loads):.2f} in this one"


def _repeat_table(body: ExpertsBody) -> Table:
    """By layer, how often a token goes to an expert that the one before it went to."""
    table = Table(
        title="Tokens that go to an expert of the token before",
        caption="same: its first choice is the first choice again; common: any of its experts is",
    )
    for heading in ("layer", "same", "common"):
        table.add_column(heading, justify="right")
    rates = body.repeat_rates
    pairs = zip(rates.get("first", []), rates.get("any", []), strict=True)
    for layer, (first, common) in enumerate(pairs):
        table.add_row(str(layer), f"{first:.1%}", f"{common:.1%}")
    if not table.rows:
        table.caption = "no tokens yet"
    return table


def _actor_table(body: ExpertsBody) -> Table:
    table = Table(title="Actors")
    for heading in ("pipeline", "rank", "role", "pid", "node", "device", "phase", "weights"):
        right = heading in ("rank", "pid", "weights")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for actor in sorted(
        body.actors, key=lambda one: (one.pipeline, one.rank is None, one.rank or 0)
    ):
        table.add_row(
            actor.pipeline,
            "" if actor.rank is None else str(actor.rank),
            actor.role,
            str(actor.pid),
            actor.node,
            actor.device,
            actor.phase,
            decimal(actor.weights_bytes),
        )
    return table


def _pipeline_and_rank(actor: ActorLine) -> tuple[str, bool, int]:
    """Those without a rank come behind those with one."""
    return actor.pipeline, actor.rank is None, actor.rank or 0
