"""Load on a running server: bursts of streamed /v1/completions with prompts of token ids."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from ops.bench.burst import Arrival, Burst
from ops.bench.http_stream import Answer, BrokenAnswer, Endpoint, post
from ops.bench.report import Report, over_rounds, percentile_ms, shown, table
from ops.bench.workload import WARM_UP_ROUND, Workload
from ops.client import ServerError, connect, served_model

_TIMEOUT_S = 600.0  # of one request
_MAX_REASON_CHARS = 300
_ERRORS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class HttpBench:
    """One run: which server, which of its models (None: the one it lists), what to ask."""

    url: str
    model: str | None
    workload: Workload


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request."""

    arrivals: tuple[Arrival, ...]
    error: str | None


def bench_http(bench: HttpBench) -> Report:
    """Measure every number of streams in turn; progress goes to stderr.

    A request counts as an error unless exactly as many tokens came as were asked for. The
    server must answer `return_token_ids`, which is how tokens are counted.

    Raises:
        ValueError: the URL is none.
        ServerError: there is no server, or it does not answer a first request.
    """
    endpoint = Endpoint.of(bench.url, "/v1/completions")
    model = bench.model
    if model is None:
        with connect(bench.url.rstrip("/").removesuffix("/v1")) as client:
            model = served_model(client)
    workload = bench.workload
    _refuse_if_it_cannot(endpoint, model, workload)
    results = [_measure(endpoint, model, streams, workload) for streams in workload.streams]
    config = {"url": bench.url, "model": model, **asdict(workload)}
    return Report("http", config, results, _table(results))


def _refuse_if_it_cannot(endpoint: Endpoint, model: str, workload: Workload) -> None:
    """One short request, so that what fails for all of them is said once and at once."""
    prompts = workload.prompts(1, WARM_UP_ROUND)
    _, [outcome] = asyncio.run(_burst(endpoint, model, prompts, workload.warm_up_tokens))
    if outcome.error is not None:
        raise ServerError(f"{endpoint.authority}: {outcome.error}")


def _measure(endpoint: Endpoint, model: str, streams: int, workload: Workload) -> dict[str, Any]:
    warm_up = workload.prompts(streams, WARM_UP_ROUND)
    asyncio.run(_burst(endpoint, model, warm_up, workload.warm_up_tokens))
    bursts = []
    errors: Counter[str] = Counter()
    for index in range(workload.rounds):
        prompts = workload.prompts(streams, index)
        burst, outcomes = asyncio.run(_burst(endpoint, model, prompts, workload.output_tokens))
        bursts.append(burst)
        errors.update(outcome.error for outcome in outcomes if outcome.error is not None)
        print(
            f"streams {streams}, round {index + 1} of {workload.rounds}: "
            f"{burst.output_tok_s:.4g} tokens/s",
            file=sys.stderr,
            flush=True,
        )
    ttfts_s = [time_s for burst in bursts for time_s in burst.first_token_s()]
    gaps_s = [gap_s for burst in bursts for gap_s in burst.gaps_s()]
    return {
        "streams": streams,
        "requests": streams * workload.rounds,
        "output_tokens": [burst.num_tokens for burst in bursts],
        "output_tok_s": over_rounds([burst.output_tok_s for burst in bursts]),
        "decode_tok_s": over_rounds([burst.decode_tok_s for burst in bursts]),
        "ttft_ms": {"p50": percentile_ms(ttfts_s, 50), "p99": percentile_ms(ttfts_s, 99)},
        "itl_ms": {"p50": percentile_ms(gaps_s, 50), "p99": percentile_ms(gaps_s, 99)},
        "errors": errors.total(),
        "error_messages": dict(errors.most_common(_ERRORS_SHOWN)),
    }


async def _burst(
    endpoint: Endpoint, model: str, prompts: list[tuple[int, ...]], output_tokens: int
) -> tuple[Burst, list[Outcome]]:
    bodies = [_body(model, prompt, output_tokens) for prompt in prompts]
    began_s = perf_counter()
    answers = await asyncio.gather(*(_answer(endpoint, body) for body in bodies))
    outcomes = [_outcome(answer, began_s, output_tokens) for answer in answers]
    return Burst(tuple(outcome.arrivals for outcome in outcomes)), outcomes


def _body(model: str, prompt: tuple[int, ...], output_tokens: int) -> bytes:
    request = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    return json.dumps(request).encode()


async def _answer(endpoint: Endpoint, body: bytes) -> Answer | str:
    """The answer, or why there is none."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await post(endpoint, body)
    except TimeoutError:
        return f"no end after {_TIMEOUT_S:g} s"
    except (OSError, BrokenAnswer) as error:
        return str(error)


def _outcome(answer: Answer | str, began_s: float, output_tokens: int) -> Outcome:
    if isinstance(answer, str):
        return Outcome((), answer)
    if answer.status != 200:
        reason = " ".join(answer.text().split())[:_MAX_REASON_CHARS]
        return Outcome((), f"status {answer.status}: {reason}")
    arrivals = []
    error: str | None = "the stream ended without [DONE]"
    for time_s, data in answer.events():
        if data == "[DONE]":
            error = None
            continue
        try:
            num_tokens = _num_tokens(json.loads(data))
        except (ValueError, LookupError, TypeError):
            error = f"not an event of a completion: {data[:_MAX_REASON_CHARS]}"
            break
        if num_tokens:
            arrivals.append(Arrival(time_s - began_s, num_tokens))
    received = sum(arrival.num_tokens for arrival in arrivals)
    if error is None and received != output_tokens:
        error = f"{received} tokens instead of {output_tokens}"
    return Outcome(tuple(arrivals), error)


def _num_tokens(event: Any) -> int:
    """Tokens in one event; a usage event has no choice. KeyError of an error event."""
    return sum(len(choice["token_ids"]) for choice in event["choices"])


def _table(results: list[dict[str, Any]]) -> str:
    rows = [
        [
            str(result["streams"]),
            shown(result["output_tok_s"]),
            shown(result["decode_tok_s"]),
            *(shown(result[key][rank]) for key in ("ttft_ms", "itl_ms") for rank in ("p50", "p99")),
            str(result["errors"]),
        ]
        for result in results
    ]
    header = ["streams", "output tok/s", "decode tok/s", "TTFT ms p50", "p99", "ITL ms p50", "p99",
              "errors"]  # fmt: skip
    return f"{table(header, rows)}\nmedian (min-max) over rounds; latencies over all requests"
