"""Limits and deadlines as clients meet them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from time import perf_counter

import httpx
import pytest

from actors.http.completion import Delta, until_deadline
from actors.http.doors import Doors, KeyDigests, digest
from actors.http.errors import DeadlineExceeded
from actors.http.rate_limits import RateLimits
from actors.http.waiting_line import LineLimits, WaitingLine
from actors.messages import GenerateRequest, TokenEvent
from tests.actors.http_serving import (
    Script,
    Step,
    chat_body,
    ids_of,
    make_state,
    says,
    serving,
    source_of,
    sse_events,
)
from tests.actors.virtual_time import run

DOORS = Doors(KeyDigests(api=(digest("a"), digest("b"))))


def ask(http: httpx.Client, key: str | None = None, **fields: object) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return http.post("/v1/chat/completions", json=chat_body(**fields), headers=headers)


def never_starts(request: GenerateRequest) -> list[Step]:
    return [None]


def never_ends(request: GenerateRequest) -> list[Step]:
    return [TokenEvent(request.request_id, (22557,)), None]


@pytest.mark.parametrize("stream", [False, True])
def test_each_key_has_its_own_minute(stream: bool) -> None:
    state = make_state(doors=DOORS, rates=RateLimits(requests_per_minute=2))
    with serving(state) as http:
        statuses = [ask(http, key, stream=stream).status_code for key in "aabab"]
        refused = ask(http, "a", stream=stream)
        assert http.get("/v1/models", headers={"authorization": "Bearer a"}).status_code == 200
    assert statuses == [200, 200, 200, 429, 200]
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert len(source_of(state).requests) == 4


def test_what_is_generated_counts_too() -> None:
    state = make_state(says("word " * 50), rates=RateLimits(tokens_per_minute=60))
    generated = len(ids_of("word " * 50)) + 1
    with serving(state) as http:
        prompt = ask(http).json()["usage"]["prompt_tokens"]
        refused = ask(http)
    assert refused.status_code == 429
    owed = generated + prompt - 60 + prompt  # one token a second
    assert owed - 10 <= int(refused.headers["retry-after"]) <= min(owed, 120) + 1


def test_a_full_line_refuses_until_a_first_token_comes() -> None:
    script: dict[str, Script] = {"now": never_starts}
    state = make_state(lambda request: script["now"](request), line=WaitingLine(LineLimits(1)))
    source = source_of(state)
    with serving(state) as http:
        leaves = threading.Thread(target=_ask_and_leave, args=(str(http.base_url),))
        leaves.start()
        assert source.waiting.wait(10)
        refused = ask(http)
        leaves.join(10)
        assert source.closings.acquire(timeout=10)
        script["now"] = never_ends
        source.waiting.clear()
        streams = [
            threading.Thread(target=_ask_and_leave, args=(str(http.base_url),)) for _ in range(2)
        ]
        for stream in streams:  # each has its first token: none waits, and more may come
            stream.start()
            assert source.waiting.wait(10)
            source.waiting.clear()
        assert (state.line.sequences, state.line.tokens, state.num_in_flight) == (0, 0, 2)
        script["now"] = says("ok")
        assert ask(http).status_code == 200
        for stream in streams:
            stream.join(10)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert "--max-num-queued-reqs" in refused.json()["error"]["message"]


def _ask_and_leave(url: str) -> None:
    with httpx.Client(base_url=url, timeout=1.0) as http, pytest.raises(httpx.ReadTimeout):
        ask(http)


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [never_starts, never_ends])
def test_a_request_over_its_time_is_ended_and_freed(
    script: object, stream: bool, choices: int
) -> None:
    steps = never_starts if script is never_starts else never_ends
    state = make_state(steps, request_timeout_s=0.1)
    with serving(state) as http:
        answer = ask(http, stream=stream, n=choices)
        text = http.get("/metrics").text
    if stream and steps is never_ends:
        assert answer.status_code == 200
        *_, last = sse_events(answer)
        error = last["error"]
    else:
        assert answer.status_code == 504
        error = answer.json()["error"]
    assert error["code"] == "deadline_exceeded"
    assert "0.1 s (--request-timeout)" in error["message"]
    assert len(source_of(state).closed) == choices
    assert 'windrose_requests_refused_total{code="504"' in text


def test_one_that_is_cancelled_while_it_waits_is_not_late() -> None:
    async def never() -> AsyncGenerator[Delta, None]:
        await asyncio.sleep(1e6)
        yield Delta(0, "", (), (), None)

    async def wait(timeout_s: float | None) -> None:
        async for _ in until_deadline(never(), timeout_s, perf_counter()):
            pass

    async def cancelled(timeout_s: float | None) -> None:
        task = asyncio.ensure_future(wait(timeout_s))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(cancelled(5.0))
    run(cancelled(None))


def test_the_deadline_counts_from_the_arrival_and_spares_what_is_in_time() -> None:
    closed: list[str] = []

    async def tokens(name: str, every_s: float) -> AsyncGenerator[Delta, None]:
        try:
            for _ in range(4):
                await asyncio.sleep(every_s)
                yield Delta(0, name, (), (), None)
        finally:
            await asyncio.sleep(0)
            closed.append(name)

    async def took(name: str, every_s: float, timeout_s: float | None) -> int:
        count = 0
        deltas = until_deadline(tokens(name, every_s), timeout_s, perf_counter())
        with pytest.raises(DeadlineExceeded) if name == "late" else nullcontext():
            async for _ in deltas:
                count += 1
                await asyncio.sleep(0.5)  # its reader's time counts too
        return count

    assert run(took("in time", 1.0, 7.0)) == 4
    assert run(took("any time", 1e6, None)) == 4
    assert run(took("late", 2.0, 6.0)) == 2
    assert closed == ["in time", "any time", "late"]
