"""Sending requests to a running server, and the figures of those that have ended."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from ops.bench.burst import Burst
from ops.bench.completions import Outcome, Prompt, Target, outcome, send
from ops.bench.http_stream import Endpoint
from ops.bench.report import percentile_ms, shown
from ops.bench.workload import WARM_UP_ROUND, Traffic
from ops.client import ServerError, connect, served_model

LATENCY_COLUMNS = ("TTFT ms p50", "p99", "ITL ms p50", "p99", "E2E ms p50", "p99")
_ERRORS_SHOWN = 5


def target_of(url: str, model: str | None, api_key: str | None = None) -> Target:
    """A running Windrose.

    Raises:
        ValueError: the URL is none.
        ServerError: there is no server, or it lists no model.
    """
    endpoint = Endpoint.of(url, "/v1/completions", api_key)
    if model is None:
        with connect(url.rstrip("/").removesuffix("/v1"), api_key) as client:
            model = served_model(client)
    return Target(endpoint, model)


def refuse_if_it_cannot(target: Target, traffic: Traffic) -> None:
    """One short request, so that what fails for all of them is said once and at once.

    Raises:
        ServerError: it failed.
    """
    prompts = traffic.prompts(1, WARM_UP_ROUND)
    [first] = run_burst(target, prompts, traffic.warm_up_tokens)
    if first.error is not None:
        raise ServerError(f"{target.endpoint.authority}: {first.error}")


def run_burst(target: Target, prompts: Sequence[Prompt], output_tokens: int) -> list[Outcome]:
    """All requests at one moment; their outcomes in the order of the prompts.

    What arrives is taken apart only after the last has ended: the server may share our cores.
    """
    bodies = [target.body(prompt, output_tokens) for prompt in prompts]

    async def converse() -> list[Outcome]:
        began_s = perf_counter()
        sent = await asyncio.gather(*(send(target, body, began_s) for body in bodies))
        return [outcome(target, one, output_tokens) for one in sent]

    return asyncio.run(converse())


def burst_of(outcomes: Sequence[Outcome]) -> Burst:
    """The timing of requests that began at one moment."""
    return Burst(tuple(one.arrivals for one in outcomes))


def errors_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How many requests failed, and the most frequent reasons."""
    errors = Counter(one.error for one in outcomes if one.error is not None)
    return {"errors": errors.total(), "error_messages": dict(errors.most_common(_ERRORS_SHOWN))}


def latencies(bursts: Sequence[Burst]) -> dict[str, Any]:
    """TTFT, ITL and E2E (to the last token) over all streams of all bursts, p50 and p99."""
    return {
        "ttft_ms": _percentiles_ms([s for burst in bursts for s in burst.first_token_s()]),
        "itl_ms": _percentiles_ms([s for burst in bursts for s in burst.gaps_s()]),
        "e2e_ms": _percentiles_ms([s for burst in bursts for s in burst.last_token_s()]),
    }


def latency_cells(result: dict[str, Any]) -> list[str]:
    """The cells under LATENCY_COLUMNS."""
    keys = ("ttft_ms", "itl_ms", "e2e_ms")
    return [shown(result[key][rank]) for key in keys for rank in ("p50", "p99")]


def _percentiles_ms(values_s: Sequence[float]) -> dict[str, float | None]:
    return {"p50": percentile_ms(values_s, 50), "p99": percentile_ms(values_s, 99)}
