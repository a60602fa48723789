"""Steady load: what is in flight when, and the figures of it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import pairwise
from statistics import fmean, pstdev
from time import perf_counter
from typing import Any

import pytest

from ops.bench.burst import Arrival
from ops.bench.completions import Outcome, Sent, Target
from ops.bench.http_load import arrival_offsets_s, at_concurrency, at_times, load_figures
from ops.bench.http_stream import Answer, Endpoint

OK = b"HTTP/1.1 200 OK\r\n\r\n"
Meet = Callable[[], Coroutine[Any, Any, object]]


@asynccontextmanager
async def server(meet: Meet, arrived_s: list[float]) -> AsyncIterator[tuple[Target, list[int]]]:
    """Answers a request once `meet` returns; the list has how many were there at each arrival."""
    waiting = 0
    in_flight: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        body = await reader.readexactly(length)
        arrived_s.append(perf_counter())
        waiting += 1
        in_flight.append(waiting)
        await asyncio.wait_for(meet(), 10)
        waiting -= 1
        writer.write(OK + body)
        await writer.drain()
        writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with running:
        port = running.sockets[0].getsockname()[1]
        yield Target(Endpoint.of(f"http://127.0.0.1:{port}", "/v1/completions"), "m"), in_flight


def answers(sent: list[Sent]) -> list[int]:
    """What each answer holds: the number in its request."""
    assert all(isinstance(one.answer, Answer) for one in sent), sent
    return [json.loads(one.answer.text()) for one in sent if isinstance(one.answer, Answer)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_at_a_concurrency_so_many_are_in_flight_and_never_more(workers: int) -> None:
    async def converse() -> tuple[list[Sent], list[int]]:
        barrier = asyncio.Barrier(workers)  # nobody is answered before so many are waiting
        async with server(barrier.wait, []) as (target, in_flight):
            bodies = [str(number).encode() for number in range(workers * 4)]
            return await at_concurrency(target, bodies, workers), in_flight

    sent, in_flight = asyncio.run(converse())
    assert sorted(answers(sent)) == list(range(workers * 4))
    assert max(in_flight) == workers


def test_at_times_requests_are_sent_whatever_is_unanswered() -> None:
    arrived_s: list[float] = []
    offsets_s = [0.0, 0.02, 0.02, 0.09]

    async def converse() -> tuple[list[Sent], list[int]]:
        barrier = asyncio.Barrier(len(offsets_s))  # the first waits for the last
        async with server(barrier.wait, arrived_s) as (target, in_flight):
            bodies = [str(number).encode() for number in range(len(offsets_s))]
            return await at_times(target, bodies, offsets_s), in_flight

    sent, in_flight = asyncio.run(converse())
    assert answers(sent) == [0, 1, 2, 3]
    assert in_flight == [1, 2, 3, 4]
    due_s = [one.began_s - sent[0].began_s for one in sent]
    assert due_s == pytest.approx(offsets_s, abs=1e-6)  # of when due, not of when sent
    for one, time_s in zip(sent, sorted(arrived_s), strict=True):
        assert time_s >= one.began_s


@pytest.mark.parametrize("rate", [0.5, 40.0])
def test_arrivals_are_a_poisson_process(rate: float) -> None:
    count = 20_001
    offsets_s = arrival_offsets_s(rate, count, seed=5)
    assert len(offsets_s) == count and offsets_s[0] == 0.0
    gaps = [(b - a) * rate for a, b in pairwise(offsets_s)]  # exponential of mean 1
    assert min(gaps) >= 0
    # Four standard errors of each: the seed is fixed, so it holds always or never.
    root = math.sqrt(count)
    assert fmean(gaps) == pytest.approx(1.0, abs=4 / root)
    assert pstdev(gaps) == pytest.approx(1.0, abs=4 * math.sqrt(2) / root)
    for bound in (0.5, 1.0, 3.0):
        share = math.exp(-bound)
        longer = sum(gap > bound for gap in gaps) / len(gaps)
        assert longer == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share)) / root)
    assert offsets_s == arrival_offsets_s(rate, count, seed=5)
    assert offsets_s != arrival_offsets_s(rate, count, seed=6)


def test_one_arrival_is_at_once() -> None:
    assert arrival_offsets_s(2.0, 1, seed=0) == [0.0]


def test_rates_are_over_all_the_time_and_latencies_over_each_request() -> None:
    figures = load_figures(
        [
            Outcome(100.0, (Arrival(1.0, 1), Arrival(3.0, 2)), None),
            Outcome(102.0, (Arrival(4.0, 1), Arrival(8.0, 4)), None),
            Outcome(104.0, (Arrival(5.0, 2),), "broke off"),
            Outcome(111.0, (), "refused"),
        ]
    )
    assert figures["requests"] == 4
    assert figures["duration_s"] == 10.0  # from 100 to the last token, at 110
    assert figures["output_tokens"] == 10
    assert figures["output_tok_s"] == 1.0
    assert figures["requests_s"] == 0.2
    assert figures["ttft_ms"]["p50"] == 4000.0  # of 1, 4 and 5 s
    assert figures["itl_ms"] == {"p50": 3000.0, "p99": 3980.0}  # of 2 and 4 s
    assert figures["e2e_ms"]["p50"] == 5000.0  # of 3, 8 and 5 s
    assert figures["errors"] == 2
    assert figures["error_messages"] == {"broke off": 1, "refused": 1}


def test_where_nothing_came_there_is_no_rate() -> None:
    figures = load_figures([Outcome(1.0, (), "refused")])
    assert figures["output_tok_s"] is None and figures["requests_s"] is None
    assert figures["ttft_ms"] == {"p50": None, "p99": None}
