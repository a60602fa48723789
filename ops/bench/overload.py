"""Ten times what a server holds, at once and for a while: what it still does for whom it takes.

First the load it holds: workers that each send their next request when the last has ended, twice
as many at every level, until more of them bring no more tokens. Then requests at random times, ten
times as many a second, whether or not they are answered. Nobody who is refused comes again.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from time import perf_counter
from typing import Any

from cluster.local_ray import free_ports
from ops.bench.completions import Outcome, Sent, Target, outcome, send
from ops.bench.http_load import arrival_offsets_s, at_times
from ops.bench.report import Report, percentile_ms, rounded, shown, table
from ops.bench.sending import errors_of, refuse_if_it_cannot, target_of
from ops.bench.startup import filled, without_paths
from ops.bench.workload import Traffic
from ops.server_process import Memory, ServerProcess

_LEAST_GAIN = 1.05  # of tokens a second, from one number of workers to the next
_BLOCK = 256  # prompts drawn at a time
_MEMORY_EVERY_S = 1.0
_RANKS = ("p50", "p99")
_REFUSED_PAUSE_S = 0.5  # of a worker on the way to the peak


@dataclass(frozen=True, slots=True)
class OverloadBench:
    """One run: which server, what is asked, and for how long each part of it."""

    model: str
    command: tuple[str, ...]
    traffic: Traffic
    levels: tuple[int, ...]  # workers
    level_s: float
    factor: float
    overload_s: float


@dataclass(frozen=True, slots=True)
class Level:
    """So many workers, and the output tokens a second they got."""

    workers: int
    output_tok_s: float
    ttft_ms: dict[str, float | None]


def bench_overload(bench: OverloadBench) -> Report:
    """Start the server, load it, overload it, stop it; progress goes to stderr.

    Raises:
        ValueError: the command has no {port}, or nothing was answered at any level.
        OSError: there is no such program.
        ServerError: it does not start, or does not answer a first request.
    """
    [port] = free_ports(1)
    server = ServerProcess("the server", filled(bench.command, port), port)
    try:
        server.wait_until_ready()
        target = target_of(server.url, None)
        refuse_if_it_cannot(target, bench.traffic)
        levels = _climb(target, bench)
        peak = max(levels, key=lambda level: level.output_tok_s)
        if not peak.output_tok_s:
            raise ValueError("no request was answered: there is no load that it holds")
        calm = server.memory()
        result = asyncio.run(_overload(target, bench, peak, server))
    finally:
        server.stop()
    result["levels"] = [asdict(level) for level in levels]
    result["memory_before"] = asdict(calm)
    config = {
        "model": Path(bench.model).resolve().name,
        "command": without_paths(bench.command),
        "level_s": bench.level_s,
        "factor": bench.factor,
        "overload_s": bench.overload_s,
        **asdict(bench.traffic),
    }
    return Report("overload", config, [result], _text(result))


def tokens_between(outcomes: Sequence[Outcome], from_s: float, to_s: float) -> int:
    """Tokens of whole answers that came in [from_s, to_s) of perf_counter."""
    return sum(
        arrival.num_tokens
        for one in outcomes
        if one.error is None
        for arrival in one.arrivals
        if from_s <= one.began_s + arrival.time_s < to_s
    )


def ttft_ms(
    outcomes: Sequence[Outcome], late_s: Sequence[float] | None = None
) -> dict[str, float | None]:
    """From when a request was due to its first token: p50, p99 and the longest.

    Without the time by which it was sent late, where that is given.
    """
    late_s = late_s or [0.0] * len(outcomes)
    times_s = [
        one.arrivals[0].time_s - late
        for one, late in zip(outcomes, late_s, strict=True)
        if one.arrivals
    ]
    return {
        "p50": percentile_ms(times_s, 50),
        "p99": percentile_ms(times_s, 99),
        "max": percentile_ms(times_s, 100),
    }


def divided(sent: Sequence[Sent]) -> tuple[list[Sent], list[Sent]]:
    """Those the server took, and those it refused with 429."""
    taken: list[Sent] = []
    refused: list[Sent] = []
    for one in sent:
        status = None if isinstance(one.answer, str) else one.answer.status
        (refused if status == HTTPStatus.TOO_MANY_REQUESTS else taken).append(one)
    return taken, refused


def _late_s(sent: Sequence[Sent]) -> list[float]:
    """By how much each was sent later than due: this process had not its turn."""
    return [
        0.0 if isinstance(one.answer, str) else one.answer.written_s - one.began_s for one in sent
    ]


def _answered_ms(refused: Sequence[Sent], late_s: Sequence[float]) -> dict[str, float | None]:
    """From when each was sent to its refusal: how long a line there is before the server's."""
    times_s = [
        one.answer.pieces[-1][0] - one.began_s - late
        for one, late in zip(refused, late_s, strict=True)
        if not isinstance(one.answer, str) and one.answer.pieces
    ]
    return {"p50": percentile_ms(times_s, 50), "p99": percentile_ms(times_s, 99)}


def _climb(target: Target, bench: OverloadBench) -> list[Level]:
    """Levels up to the first that brings hardly more than the one before."""
    levels: list[Level] = []
    for index, workers in enumerate(bench.levels):
        bodies = _bodies(target, bench.traffic, index)
        began_s = perf_counter()
        sent = asyncio.run(_for_seconds(target, bodies, workers, began_s + bench.level_s))
        taken, _ = divided(sent)
        ended = [outcome(target, one, bench.traffic.output_tokens) for one in taken]
        half_s = began_s + bench.level_s / 2  # until then they come into step
        tokens = tokens_between(ended, half_s, began_s + bench.level_s)
        level = Level(workers, rounded(tokens / (bench.level_s / 2)), ttft_ms(ended))
        _say(f"{workers} workers: {shown(level.output_tok_s)} tokens/s")
        levels.append(level)
        if index and level.output_tok_s < levels[-2].output_tok_s * _LEAST_GAIN:
            break
    return levels


def _bodies(target: Target, traffic: Traffic, index: int) -> Iterator[bytes]:
    """Without end; every level its own."""
    block = index * 1000
    while True:
        for prompt in traffic.prompts(_BLOCK, block):
            yield target.body(prompt, traffic.output_tokens)
        block += 1


async def _for_seconds(
    target: Target, bodies: Iterator[bytes], workers: int, until_s: float
) -> list[Sent]:
    ended: list[Sent] = []

    async def work() -> None:
        while perf_counter() < until_s:
            ended.append(await send(target, next(bodies)))
            if divided(ended[-1:])[1]:
                await asyncio.sleep(_REFUSED_PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())
    return ended


async def _overload(
    target: Target, bench: OverloadBench, peak: Level, server: ServerProcess
) -> dict[str, Any]:
    traffic = bench.traffic
    rate = bench.factor * peak.output_tok_s / traffic.output_tokens
    count = max(1, int(rate * bench.overload_s))
    offsets_s = arrival_offsets_s(rate, count, traffic.seed)
    source = _bodies(target, traffic, len(bench.levels))
    bodies = [next(source) for _ in range(count)]
    _say(f"{rate:.4g} requests a second for {bench.overload_s:g} s")
    began_s = perf_counter()
    watching = asyncio.create_task(_highest_memory(server, began_s + bench.overload_s))
    sent = await at_times(target, bodies, offsets_s)
    drained_s = perf_counter() - began_s
    highest = await watching
    taken, refused = divided(sent)
    ended = [outcome(target, one, traffic.output_tokens) for one in taken]
    # Not the beginning, when the first answers are still on their way.
    ramp_s = bench.overload_s / 3
    tokens = tokens_between(ended, began_s + ramp_s, began_s + bench.overload_s)
    goodput = tokens / (bench.overload_s - ramp_s)
    return {
        "peak_tok_s": peak.output_tok_s,
        "peak_requests_s": rounded(peak.output_tok_s / traffic.output_tokens),
        "rate": rounded(rate),
        "sent": len(sent),
        "accepted": len(taken),
        "refused": len(refused),
        "sent_late_ms": {rank: percentile_ms(_late_s(sent), int(rank[1:])) for rank in _RANKS},
        "refused_ms": _answered_ms(refused, _late_s(refused)),
        "goodput_tok_s": rounded(goodput),
        "goodput_of_peak": rounded(goodput / peak.output_tok_s),
        "ttft_ms": ttft_ms(ended),
        "ttft_since_sent_ms": ttft_ms(ended, _late_s(taken)),
        "drained_s": rounded(drained_s),
        "memory_highest": asdict(highest),
        "memory_after": asdict(server.memory()),
        **errors_of(ended),
    }


async def _highest_memory(server: ServerProcess, until_s: float) -> Memory:
    """Of looks a second apart, in a thread: each takes some milliseconds a process."""
    highest = await asyncio.to_thread(server.memory)
    while perf_counter() < until_s:
        await asyncio.sleep(_MEMORY_EVERY_S)
        seen = await asyncio.to_thread(server.memory)
        highest = max(highest, seen, key=lambda memory: memory.pss_bytes)
    return highest


def _text(result: dict[str, Any]) -> str:
    rows = [
        [str(level["workers"]), shown(level["output_tok_s"]), shown(level["ttft_ms"]["p99"])]
        for level in result["levels"]
    ]
    memory = [
        result[f"memory_{when}"]["pss_bytes"] / 1e9 for when in ("before", "highest", "after")
    ]
    late = result["sent_late_ms"]
    ttft, since_sent = result["ttft_ms"], result["ttft_since_sent_ms"]
    return (
        f"{table(['workers', 'tokens/s', 'TTFT ms p99'], rows)}\n"
        f"{shown(result['rate'])} requests/s: {result['sent']} sent, "
        f"{result['accepted']} accepted, {result['refused']} refused, {result['errors']} failed\n"
        f"sent late, ms: p50 {shown(late['p50'])}, p99 {shown(late['p99'])}: not the server's\n"
        f"refusals took, since sent, ms: p50 {shown(result['refused_ms']['p50'])}, "
        f"p99 {shown(result['refused_ms']['p99'])}\n"
        f"goodput {shown(result['goodput_tok_s'])} tokens/s, "
        f"{100 * result['goodput_of_peak']:.0f} % of the peak\n"
        f"TTFT of the accepted, ms: p50 {shown(ttft['p50'])}, p99 {shown(ttft['p99'])}, "
        f"max {shown(ttft['max'])}; since sent: p50 {shown(since_sent['p50'])}, "
        f"p99 {shown(since_sent['p99'])}, max {shown(since_sent['max'])}\n"
        f"memory (PSS, GB): {memory[0]:.2f} before, {memory[1]:.2f} at most, {memory[2]:.2f} after"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
