"""Bursts on a running server: so many streamed completions at once, again and again."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from ops.bench.burst import Burst
from ops.bench.completions import Outcome, Target
from ops.bench.report import Report, over_rounds, shown, table
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
from ops.bench.workload import WARM_UP_ROUND, Workload


@dataclass(frozen=True, slots=True)
class HttpBench:
    """One run: which server, which of its models (None: the one it lists), what to ask."""

    name: str  # of the subcommand
    url: str
    model: str | None
    workload: Workload
    api_key: str | None = field(default=None, repr=False)


def bench_http(bench: HttpBench) -> Report:
    """Measure every number of streams in turn; progress goes to stderr.

    A request counts as an error unless exactly as many tokens came as were asked for.

    Raises:
        ValueError: the URL is none.
        ServerError: there is no server, or it does not answer a first request.
    """
    target = target_of(bench.url, bench.model, bench.api_key)
    refuse_if_it_cannot(target, bench.workload)
    results = [_measure(target, streams, bench.workload) for streams in bench.workload.streams]
    config = {"url": bench.url, "model": target.model, **asdict(bench.workload)}
    return Report(bench.name, config, results, _table(results))


def _measure(target: Target, streams: int, workload: Workload) -> dict[str, Any]:
    run_burst(target, workload.prompts(streams, WARM_UP_ROUND), workload.warm_up_tokens)
    bursts: list[Burst] = []
    outcomes: list[Outcome] = []
    for index in range(workload.rounds):
        ended = run_burst(target, workload.prompts(streams, index), workload.output_tokens)
        outcomes += ended
        bursts.append(burst_of(ended))
        print(
            f"streams {streams}, round {index + 1} of {workload.rounds}: "
            f"{bursts[-1].output_tok_s:.4g} tokens/s",
            file=sys.stderr,
            flush=True,
        )
    return {
        "streams": streams,
        "requests": streams * workload.rounds,
        "output_tokens": [burst.num_tokens for burst in bursts],
        "output_tok_s": over_rounds([burst.output_tok_s for burst in bursts]),
        "decode_tok_s": over_rounds([burst.decode_tok_s for burst in bursts]),
        **latencies(bursts),
        **errors_of(outcomes),
    }


def _table(results: list[dict[str, Any]]) -> str:
    rows = [
        [
            str(result["streams"]),
            shown(result["output_tok_s"]),
            shown(result["decode_tok_s"]),
            *latency_cells(result),
            str(result["errors"]),
        ]
        for result in results
    ]
    header = ["streams", "output tok/s", "decode tok/s", *LATENCY_COLUMNS, "errors"]
    return f"{table(header, rows)}\nmedian (min-max) over rounds; latencies over all requests"
