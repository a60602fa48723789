"""Windrose and other servers on the same machine in one run, taking turns."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from ops.bench.compare_report import (
    BURST_FIGURES,
    HEADINGS,
    PREFILL_FIGURES,
    Measured,
    Shape,
    figure_of,
    result_of,
    table_of,
)
from ops.bench.contenders import Contender, Lineup, lineup_of
from ops.bench.report import Report, shown
from ops.bench.sending import run_burst
from ops.bench.startup import without_paths
from ops.bench.workload import WARM_UP_ROUND, Traffic
from ops.client import ServerError

_IDLE_CORES = 0.05  # more than that of the others together is said while it happens


@dataclass(frozen=True, slots=True)
class CompareBench:
    """One run: ours is the first contender. `prefill_tokens` 0: no prompt by itself."""

    model: str
    contenders: tuple[Contender, ...]
    streams: tuple[int, ...]
    traffic: Traffic
    prefill_tokens: int
    rounds: int
    restart: bool
    prompt_text: bool

    def __post_init__(self) -> None:
        names = [contender.name for contender in self.contenders]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"--peer {name}: that name is taken")

    @property
    def shapes(self) -> list[Shape]:
        """What each contender is asked in a round, in order."""
        shapes = [Shape(streams, self.traffic, BURST_FIGURES) for streams in self.streams]
        if self.prefill_tokens:
            traffic = self.traffic
            prompt = Traffic(self.prefill_tokens, 1, traffic.vocab_size, traffic.seed)
            shapes.append(Shape(1, prompt, PREFILL_FIGURES))
        return shapes


class Turn(NamedTuple):
    """One burst: of which shape and round, on whom; `anew` where a visit to it begins."""

    round_index: int
    shape: int
    name: str
    anew: bool


def turns(names: Sequence[str], shapes: int, rounds: int, *, restart: bool) -> Iterator[Turn]:
    """Who is measured when: who begins alternates, so that a slow while is slow for all.

    Servers that stay take turns burst by burst; with `restart` each visit has all the shapes.
    """
    for index in range(rounds):
        order = names if index % 2 == 0 else names[::-1]
        if restart:
            for name in order:
                for shape in range(shapes):
                    yield Turn(index, shape, name, shape == 0)
        else:
            for shape in range(shapes):
                for name in order:
                    yield Turn(index, shape, name, False)


def bench_compare(bench: CompareBench) -> Report:
    """Start all, measure in turns, stop all; progress goes to stderr.

    Raises:
        ValueError: a command has no {port}.
        OSError: a command names no program.
        ServerError: a server does not start, or does not answer a first request.
    """
    names = [contender.name for contender in bench.contenders]
    shapes = bench.shapes
    measured: dict[tuple[int, str], list[Measured]] = {}
    with lineup_of(
        bench.contenders, prompt_text=bench.prompt_text, restart=bench.restart
    ) as lineup:
        for turn in turns(names, len(shapes), bench.rounds, restart=bench.restart):
            one = _measure(lineup, turn, shapes[turn.shape])
            measured.setdefault((turn.shape, turn.name), []).append(one)
    results = [
        result_of(shape, {name: measured[index, name] for name in names})
        for index, shape in enumerate(shapes)
    ]
    config = {
        "model": Path(bench.model).resolve().name,
        "contenders": {
            one.name: {
                "command": without_paths(one.command),
                "version": lineup.versions[one.name],
                "fields": dict(one.fields),
            }
            for one in bench.contenders
        },
        "prompts": "text" if bench.prompt_text else "token ids",
        "streams": bench.streams,
        "prompt_tokens": bench.traffic.prompt_tokens,
        "output_tokens": bench.traffic.output_tokens,
        "prefill_tokens": bench.prefill_tokens,
        "rounds": bench.rounds,
        "restart": bench.restart,
        "seed": bench.traffic.seed,
    }
    return Report("compare", config, results, table_of(shapes, results))


def _measure(lineup: Lineup, turn: Turn, shape: Shape) -> Measured:
    running = lineup.visit(turn.name, anew=turn.anew)
    traffic = shape.traffic
    if turn.shape not in running.warm:
        warm_up = traffic.prompts(shape.streams, WARM_UP_ROUND)
        for one in run_burst(running.target, warm_up, traffic.warm_up_tokens):
            if one.error is not None:
                raise ServerError(f"{turn.name}: {one.error}")
        running.warm.add(turn.shape)
    others = lineup.others(turn.name)
    before = [other.cpu_s() for other in others]
    began_s = perf_counter()
    prompts = traffic.prompts(shape.streams, turn.round_index)
    outcomes = run_burst(running.target, prompts, traffic.output_tokens)
    elapsed_s = perf_counter() - began_s
    busy = sum(
        used_s(earlier, other.cpu_s()) for earlier, other in zip(before, others, strict=True)
    )
    measured = Measured(outcomes, busy / elapsed_s)
    notes = f" ({measured.others_busy_cores:.2g} cores busy elsewhere)"
    print(
        f"{shape}, round {turn.round_index + 1}, {turn.name}: "
        f"{shown(figure_of(shape.figures[0], measured.burst, shape))} {HEADINGS[shape.figures[0]]}"
        f"{notes if measured.others_busy_cores > _IDLE_CORES else ''}",
        file=sys.stderr,
        flush=True,
    )
    return measured


def used_s(before: dict[int, float], after: dict[int, float]) -> float:
    """Processor time between two looks at a server; of processes that ended meanwhile none."""
    return sum(spent_s - before.get(pid, 0.0) for pid, spent_s in after.items())
