"""Steady load on a running server: at a fixed concurrency, or at a fixed rate of arrivals."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from time import perf_counter
from typing import Any, Literal

import numpy as np

from ops.bench.completions import Outcome, Sent, Target, outcome, send
from ops.bench.report import Report, rounded, shown, table
from ops.bench.sending import (
    LATENCY_COLUMNS,
    burst_of,
    errors_of,
    latencies,
    latency_cells,
    refuse_if_it_cannot,
    run_burst,
    target_of,
)
from ops.bench.workload import WARM_UP_ROUND, Traffic

_MOST_WARM_UP_STREAMS = 8


@dataclass(frozen=True, slots=True)
class LoadBench:
    """One run: which server, how the load is held, and at which levels.

    `concurrency`: so many workers, each sending its next request when the last has ended, and
    `requests` of them. `rate`: so many requests per second, `requests` in all.
    """

    url: str
    model: str | None
    traffic: Traffic
    held: Literal["concurrency", "rate"]
    levels: tuple[float, ...]
    requests: int
    api_key: str | None = field(default=None, repr=False)


def bench_load(bench: LoadBench) -> Report:
    """Measure every level in turn; progress goes to stderr.

    Raises:
        ValueError: the URL is none.
        ServerError: there is no server, or it does not answer a first request.
    """
    target = target_of(bench.url, bench.model, bench.api_key)
    refuse_if_it_cannot(target, bench.traffic)
    results = [_measure(target, bench, index) for index in range(len(bench.levels))]
    config = {
        "url": bench.url,
        "model": target.model,
        bench.held: bench.levels,
        "requests": bench.requests,
        **asdict(bench.traffic),
    }
    return Report("serve", config, results, _table(bench.held, results))


def arrival_offsets_s(rate: float, count: int, seed: int) -> list[float]:
    """When a Poisson process of `rate` events per second has its first `count`, from the first."""
    gaps_s = np.random.default_rng(seed).exponential(1.0 / rate, count - 1)
    return list(accumulate(gaps_s.tolist(), initial=0.0))


def load_figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Rates and latencies of requests that began at times of their own.

    Rates are taken from the first request's start to the last token of any.
    """
    ends_s = [one.began_s + one.arrivals[-1].time_s for one in outcomes if one.arrivals]
    duration_s = max(ends_s) - min(one.began_s for one in outcomes) if ends_s else 0.0
    finished = sum(one.error is None for one in outcomes)
    tokens = sum(one.num_tokens for one in outcomes)
    return {
        "requests": len(outcomes),
        "duration_s": rounded(duration_s),
        "output_tokens": tokens,
        "output_tok_s": rounded(tokens / duration_s) if duration_s else None,
        "requests_s": rounded(finished / duration_s) if duration_s else None,
        **latencies([burst_of(outcomes)]),
        **errors_of(outcomes),
    }


def _measure(target: Target, bench: LoadBench, index: int) -> dict[str, Any]:
    traffic, level = bench.traffic, bench.levels[index]
    workers = int(level) if bench.held == "concurrency" else None
    total = bench.requests * (workers or 1)
    warm_up = traffic.prompts(workers or min(total, _MOST_WARM_UP_STREAMS), WARM_UP_ROUND)
    run_burst(target, warm_up, traffic.warm_up_tokens)
    bodies = [target.body(one, traffic.output_tokens) for one in traffic.prompts(total, index)]
    if workers is not None:
        sent = asyncio.run(at_concurrency(target, bodies, workers))
    else:
        offsets_s = arrival_offsets_s(level, total, traffic.seed)
        sent = asyncio.run(at_times(target, bodies, offsets_s))
    # Only now is what arrived taken apart: the server may share our cores.
    figures = load_figures([outcome(target, one, traffic.output_tokens) for one in sent])
    print(
        f"{bench.held} {level:g}: {shown(figures['output_tok_s'])} tokens/s",
        file=sys.stderr,
        flush=True,
    )
    return {bench.held: level, **figures}


async def at_concurrency(target: Target, bodies: Sequence[bytes], workers: int) -> list[Sent]:
    """Every worker has an equal share of the bodies; returns them in the order of their ends."""
    ended: list[Sent] = []

    async def work(share: Sequence[bytes]) -> None:
        for body in share:
            one = await send(target, body)
            ended.append(one)

    async with asyncio.TaskGroup() as group:
        for worker in range(workers):
            group.create_task(work(bodies[worker::workers]))
    return ended


async def at_times(
    target: Target, bodies: Sequence[bytes], offsets_s: Sequence[float]
) -> list[Sent]:
    """Send each body at its time from now, however many are unanswered then.

    Times count from when a request was due: what we send late is not taken off its latency.
    """
    began_s = perf_counter()

    async def at(due_s: float, body: bytes) -> Sent:
        await asyncio.sleep(max(0.0, due_s - perf_counter()))
        return await send(target, body, due_s)

    return await asyncio.gather(
        *(at(began_s + offset_s, body) for offset_s, body in zip(offsets_s, bodies, strict=True))
    )


def _table(held: str, results: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"{result[held]:g}",
            str(result["requests"]),
            shown(result["output_tok_s"]),
            shown(result["requests_s"]),
            *latency_cells(result),
            str(result["errors"]),
        ]
        for result in results
    ]
    header = [held, "requests", "output tok/s", "requests/s", *LATENCY_COLUMNS, "errors"]
    return f"{table(header, rows)}\nlatencies over all requests, from when each was due"
