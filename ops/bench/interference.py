"""What a long prompt does to streams under way: their gaps before it comes, and while it is read.

The field calls it prefill-decode interference (DistServe, arXiv 2401.09670).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from ops.bench.completions import Outcome, Target, outcome
from ops.bench.http_load import at_times
from ops.bench.report import Report, over_rounds, percentile_ms, rounded, shown, table
from ops.bench.sending import errors_of, refuse_if_it_cannot, run_burst, target_of
from ops.bench.workload import WARM_UP_ROUND, Workload

_LONG_OUTPUT_TOKENS = 1  # the prompt is read when it comes


@dataclass(frozen=True, slots=True)
class InterferenceBench:
    """One run: which server, its streams, and the prompt that comes `calm_s` after them."""

    url: str
    model: str | None
    workload: Workload
    long_prompt_tokens: int
    calm_s: float
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Gaps:
    """Seconds between successive tokens of a stream, all streams together, in two times."""

    calm_s: list[float]  # every stream has begun, the prompt has not come
    beside_s: list[float]  # the prompt has come, its first token has not

    @property
    def p99_ratio(self) -> float:
        """How many times as long the gaps' p99 is beside the prompt."""
        calm_ms, beside_ms = percentile_ms(self.calm_s, 99), percentile_ms(self.beside_s, 99)
        assert calm_ms and beside_ms, "gaps_of gives some of both"
        return rounded(beside_ms / calm_ms)


def gaps_of(streams: Sequence[Outcome], prompt: Outcome) -> Gaps:
    """Sort the streams' gaps; one of which a part is beside the prompt counts as beside it.

    Raises:
        ValueError: the streams had not all begun when the prompt came, or one had ended before
            it was read: there is nothing to compare.
    """
    came_s, read_s = prompt.began_s, prompt.began_s + prompt.arrivals[0].time_s
    times_s = [[one.began_s + arrival.time_s for arrival in one.arrivals] for one in streams]
    if any(stream_s[-1] <= read_s for stream_s in times_s):
        raise ValueError("--output-tokens: a stream ended before the long prompt was read")
    begun_s = max(stream_s[0] for stream_s in times_s)
    pairs = [pair for stream_s in times_s for pair in pairwise(stream_s)]
    calm_s = [end - begin for begin, end in pairs if begun_s <= begin and end < came_s]
    if not calm_s:
        raise ValueError("--calm-seconds: the long prompt came before all streams had begun")
    return Gaps(calm_s, [end - begin for begin, end in pairs if end >= came_s and begin < read_s])


def bench_interference(bench: InterferenceBench) -> Report:
    """Measure every number of streams in turn; progress goes to stderr.

    Raises:
        ValueError: the URL is none, or see `gaps_of`.
        ServerError: there is no server, or it does not answer a first request.
    """
    target = target_of(bench.url, bench.model, bench.api_key)
    refuse_if_it_cannot(target, bench.workload)
    results = [_measure(target, bench, streams) for streams in bench.workload.streams]
    config = {
        "url": bench.url,
        "model": target.model,
        "long_prompt_tokens": bench.long_prompt_tokens,
        "calm_s": bench.calm_s,
        **asdict(bench.workload),
    }
    return Report("interference", config, results, _table(results))


def _measure(target: Target, bench: InterferenceBench, streams: int) -> dict[str, Any]:
    workload = bench.workload
    warm_up = workload.prompts(streams, WARM_UP_ROUND)
    run_burst(target, warm_up, workload.warm_up_tokens)
    outcomes: list[Outcome] = []
    rounds: list[Gaps] = []
    read_s: list[float] = []
    for index in range(workload.rounds):
        ended, prompt = _converse(target, bench, streams, index)
        outcomes += [*ended, prompt]
        if any(one.error is not None for one in (*ended, prompt)):
            continue
        rounds.append(gaps_of(ended, prompt))
        read_s.append(prompt.arrivals[0].time_s)
        print(
            f"streams {streams}, round {index + 1} of {workload.rounds}: "
            f"p99 {shown(rounds[-1].p99_ratio)} times as long",
            file=sys.stderr,
            flush=True,
        )
    return {
        "streams": streams,
        "calm_ms": _percentiles([one.calm_s for one in rounds]),
        "beside_ms": _percentiles([one.beside_s for one in rounds]),
        "p99_ratio": over_rounds([one.p99_ratio for one in rounds]),
        "prompt_ttft_s": over_rounds(read_s),
        **errors_of(outcomes),
    }


def _converse(
    target: Target, bench: InterferenceBench, streams: int, index: int
) -> tuple[list[Outcome], Outcome]:
    """One round: so many streams, and a while later the prompt."""
    workload = bench.workload
    [long_prompt] = replace(workload, prompt_tokens=bench.long_prompt_tokens).prompts(1, index)
    prompts = workload.prompts(streams, index)
    bodies = [target.body(prompt, workload.output_tokens) for prompt in prompts]
    bodies.append(target.body(long_prompt, _LONG_OUTPUT_TOKENS))
    offsets_s = [*([0.0] * streams), bench.calm_s]
    *sent, last = asyncio.run(at_times(target, bodies, offsets_s))
    # Only now is what arrived taken apart: the server may share our cores.
    ended = [outcome(target, one, workload.output_tokens) for one in sent]
    return ended, outcome(target, last, _LONG_OUTPUT_TOKENS)


def _percentiles(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    return {
        f"p{percent}": over_rounds([percentile_ms(gaps_s, percent) for gaps_s in rounds])
        for percent in (50, 99)
    }


def _table(results: list[dict[str, Any]]) -> str:
    rows = [
        [
            str(result["streams"]),
            *(shown(result[key][p]) for key in ("calm_ms", "beside_ms") for p in ("p50", "p99")),
            shown(result["p99_ratio"]),
            shown(result["prompt_ttft_s"]),
            str(result["errors"]),
        ]
        for result in results
    ]
    header = [
        "streams", "calm ITL ms p50", "p99", "beside the prompt p50", "p99", "p99 ratio",
        "prompt's TTFT s", "errors",
    ]  # fmt: skip
    return f"{table(header, rows)}\nmedian (min-max) over rounds; ITL over all streams of a round"
