"""Streams under chaos: every way an answer can end is told apart, and load stays closed-loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Any

import pytest

from ops.chaos.load import Load, Outcome, ask, stream_client
from ops.chaos.pool import Request, endless, make_pool
from tests.ops.chaos_stub import DONE, HEAD, LAST_CHUNK, Answer, chaos_stub, chunk, event, tokens_of

REQUEST = Request(5, prompt=(300, 301), max_tokens=4, seed=9)


def outcome_of(answer: Answer, silence_s: float = 30.0) -> Outcome:
    async def run(url: str) -> Outcome:
        async with stream_client(url, silence_s) as client:
            return await ask(client, "stub", REQUEST)

    with chaos_stub() as stub:
        stub.answer = answer
        return asyncio.run(run(stub.url))


def says(*pieces: bytes) -> Answer:
    async def answer(_body: dict[str, Any]) -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return answer


def test_a_whole_answer_in_any_cut() -> None:
    # U+2028 is a line end for some; JSON may hold it as it is.
    body = event([1, 2], text="a\u2028b") + event([], text="") + event([3, 4], "length") + DONE
    outcome = outcome_of(
        says(HEAD, *(chunk(body[i : i + 7]) for i in range(0, len(body), 7)), LAST_CHUNK)
    )
    assert outcome.failure is None
    assert outcome.token_ids == (1, 2, 3, 4)
    assert outcome.request == 5
    assert len(outcome.event_times_s) == 2, "an event without tokens ends no gap"
    assert outcome.sent_s < outcome.event_times_s[0] <= outcome.event_times_s[1]
    assert outcome.event_times_s[1] <= outcome.ended_s <= perf_counter()


def status(line: bytes, body: bytes) -> Answer:
    return says(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n" % (line, len(body)) + body)


OPENAI_ERROR = json.dumps({"error": {"message": "no pipeline", "type": "t"}}).encode()


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        pytest.param(
            status(b"503 Unavailable", OPENAI_ERROR), "status", "status 503: no pipeline",
            id="refused",
        ),
        pytest.param(
            status(b"503 Unavailable", b"<html>\n503"), "proxy", "status 503: <html> 503",
            id="refused-by-a-proxy",
        ),
        pytest.param(
            status(b"500 Error", b"oh"), "status", "status 500: oh", id="not-in-openais-shape"
        ),
        pytest.param(
            says(HEAD, chunk(event([1])), chunk(b"data: " + OPENAI_ERROR + b"\n\n"), LAST_CHUNK),
            "error", "no pipeline", id="error-event",
        ),
        pytest.param(
            says(HEAD, chunk(b"data: 17\n\n"), LAST_CHUNK),
            "error", "not an event of a completion: 17", id="no-event-at-all",
        ),
        pytest.param(
            says(HEAD, chunk(event([1])), chunk(event([2])), LAST_CHUNK),
            "unfinished", "the stream ended after 2 tokens", id="no-end",
        ),
        pytest.param(
            says(HEAD, chunk(event([1])), chunk(DONE), LAST_CHUNK),
            "unfinished", "the stream ended after 1 tokens", id="done-without-a-reason",
        ),
        pytest.param(says(HEAD, chunk(event([1]))), "broken", None, id="cut-within"),
        pytest.param(says(), "broken", None, id="cut-before"),
    ],
)  # fmt: skip
def test_failures(answer: Answer, kind: str, reason: str | None) -> None:
    failure = outcome_of(answer).failure
    assert failure is not None
    assert failure.kind == kind
    assert reason is None or failure.reason == reason


def test_silence_is_a_failure_and_keeps_what_came() -> None:
    async def mute(_body: dict[str, Any]) -> AsyncIterator[bytes]:
        yield HEAD + chunk(event([8]))
        await asyncio.sleep(1.0)

    outcome = outcome_of(mute, silence_s=0.1)
    assert outcome.failure is not None
    assert outcome.failure.kind == "silent"
    assert outcome.token_ids == (8,)


def test_nobody_listens() -> None:
    async def run() -> Outcome:
        with chaos_stub() as stub:
            url = stub.url
        async with stream_client(url) as client:
            return await ask(client, "stub", REQUEST)

    failure = asyncio.run(run()).failure
    assert failure is not None
    assert failure.kind == "broken"


def test_load_keeps_so_many_streams_until_it_is_stopped() -> None:
    pool = make_pool(6, 8, 2048, 100, seed=1)
    in_flight: list[int] = []

    async def run(url: str) -> tuple[int, list[Outcome]]:
        async with stream_client(url) as client:
            load = Load(client, "stub", 3)
            running = asyncio.create_task(load.run(endless(pool, 1)))
            while len(load.outcomes) < 20:
                await asyncio.sleep(0.005)
            load.stop()
            return len(load.outcomes), await running

    with chaos_stub() as stub:
        whole = stub.answer
        now = 0

        async def counted(body: dict[str, Any]) -> AsyncIterator[bytes]:
            nonlocal now
            now += 1
            in_flight.append(now)
            async for piece in whole(body):
                yield piece
            now -= 1

        stub.answer = counted
        when_stopped, outcomes = asyncio.run(run(stub.url))
    assert max(in_flight) == 3
    assert len(outcomes) == when_stopped + 3, "what was in flight ended, nothing new began"
    for outcome in outcomes:
        request = pool[outcome.request]
        assert outcome.failure is None
        assert list(outcome.token_ids) == tokens_of(json.loads(request.body("stub")))


def test_all_streams_must_have_moved() -> None:
    go_on = asyncio.Event()

    async def halting(body: dict[str, Any]) -> AsyncIterator[bytes]:
        yield HEAD + chunk(event([1]))
        if body["max_tokens"] == 4:
            while not go_on.is_set():  # set in another loop: asked, not awaited
                await asyncio.sleep(0.005)
        yield chunk(event([2]))
        await asyncio.sleep(0.05)
        yield chunk(event([3], "length")) + chunk(DONE) + LAST_CHUNK

    async def run(url: str) -> tuple[bool, bool, bool]:
        async with stream_client(url) as client:
            load = Load(client, "stub", 2)
            other = Request(6, (1,), 5, None)
            running = asyncio.create_task(load.run([REQUEST, other]))
            while not load.outcomes:  # the other one's
                await asyncio.sleep(0.005)
            early, now_s = load.has_moved_since(0.0), perf_counter()
            halted = load.has_moved_since(now_s)
            go_on.set()
            while not load.has_moved_since(now_s):
                await asyncio.sleep(0.005)
            await running
            return early, halted, load.has_moved_since(perf_counter())

    with chaos_stub() as stub:
        stub.answer = halting
        assert asyncio.run(run(stub.url)) == (True, False, True)


def test_pool() -> None:
    pool = make_pool(64, 128, 2048, 2048, seed=3)
    assert pool == make_pool(64, 128, 2048, 2048, seed=3)
    assert pool != make_pool(64, 128, 2048, 2048, seed=4)
    assert len({(request.prompt, request.seed) for request in pool}) == 64
    assert sum(request.seed is None for request in pool) == 32
    assert min(len(request.prompt) for request in pool) < 4
    assert 150 < max(len(request.prompt) for request in pool) <= 300
    assert all(32 <= request.max_tokens <= 128 for request in pool)
    for request in make_pool(64, 90, 2048, 100, seed=3):
        assert len(request.prompt) + request.max_tokens <= 100
    with pytest.raises(ValueError, match="--max-tokens 100"):
        make_pool(4, 100, 2048, 100, seed=3)
    with pytest.raises(ValueError, match="--vocab-size 200"):
        make_pool(4, 10, 200, 100, seed=3)
    order = endless(pool, 3)
    first, second = ([next(order).index for _ in pool] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second
