from __future__ import annotations

import asyncio
import json
import socket
import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from ray.serve._private.http_util import parse_disconnect_disabled_header
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.http.errors import BodyTooLarge
from actors.http.request_ids import serve_middlewares
from actors.http.transport import read_body, unless_disconnected
from actors.messages import GenerateRequest, TokenEvent
from tests.actors.http_serving import Step, chat_body, make_state, serving, source_of

MAX_BODY_BYTES = 4 * 2**20  # the default
PARSERS = ["h11", "httptools"]


def connect(http: httpx.Client) -> socket.socket:
    connection = socket.create_connection((http.base_url.host, http.base_url.port or 0))
    connection.settimeout(10)
    return connection


def raw_post(body: bytes) -> bytes:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def never_ends(request: GenerateRequest) -> list[Step]:
    return [TokenEvent(request.request_id, (22557,)), None]


def never_starts(request: GenerateRequest) -> list[Step]:
    return [None]


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("script", [never_ends, never_starts])
def test_a_client_that_leaves_aborts_its_sequences(
    parser: str, stream: bool, choices: int, script: object
) -> None:
    state = make_state(never_ends if script is never_ends else never_starts)
    source = source_of(state)
    with serving(state, parser) as http:
        connection = connect(http)
        connection.sendall(raw_post(json.dumps(chat_body(stream=stream, n=choices)).encode()))
        assert source.waiting.wait(10)
        assert state.num_in_flight == choices
        # Linger 0: the close is a reset, as when the client's process is killed.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        assert all(source.closings.acquire(timeout=10) for _ in range(choices))
        text = http.get("/metrics").text
    assert sorted(source.closed) == sorted(request.request_id for request in source.requests)
    assert len(source.closed) == choices
    assert f'finished_reason="abort",model_name="mixtral-test"}} {choices}.0' in text


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_ten_megabyte_body_is_refused(parser: str, chunked: bool) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(160):
            yield b"x" * 65536

    state = make_state()
    with serving(state, parser) as http:
        content = chunks() if chunked else b"x" * (160 * 65536)
        answer = http.post("/v1/chat/completions", content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
        assert http.post("/v1/chat/completions", json=chat_body()).status_code == 200


@pytest.mark.parametrize("parser", PARSERS)
def test_a_client_that_sends_it_all_before_reading_sees_the_refusal(parser: str) -> None:
    with serving(make_state(), parser) as http, connect(http) as connection:
        connection.sendall(raw_post(b"x" * 10_000_000))
        assert connection.recv(12) == b"HTTP/1.1 413"


@pytest.mark.parametrize("parser", PARSERS)
def test_a_client_that_asks_first_is_refused_before_it_sends(parser: str) -> None:
    head = raw_post(b"x" * 10_000_000)[:-10_000_004] + b"\r\nExpect: 100-continue\r\n\r\n"
    with serving(make_state(), parser) as http, connect(http) as connection:
        connection.sendall(head)
        assert connection.recv(12) == b"HTTP/1.1 413"


def test_a_body_without_end_is_not_kept_and_not_read_forever() -> None:
    received = 0

    async def receive() -> Message:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": block, "more_body": True}

    async def read(headers: list[tuple[bytes, bytes]]) -> None:
        await read_body(Request({"type": "http", "headers": headers}, receive), MAX_BODY_BYTES)

    block = bytes(2**20)
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            asyncio.run(read([]))
        assert tracemalloc.get_traced_memory()[1] < 2 * MAX_BODY_BYTES
    finally:
        tracemalloc.stop()
    assert received == 65
    with pytest.raises(BodyTooLarge):
        asyncio.run(read([(b"content-length", b"10000000000")]))
    assert received == 65


def test_a_body_of_exactly_the_limit_is_read() -> None:
    content = json.dumps(chat_body(metadata="")).encode()
    padded = json.dumps(chat_body(metadata="x" * (MAX_BODY_BYTES - len(content)))).encode()
    assert len(padded) == MAX_BODY_BYTES
    with serving(make_state()) as http:
        assert http.post("/v1/chat/completions", content=padded).status_code == 200
        assert http.post("/v1/chat/completions", content=padded + b" ").status_code == 413


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("chunked", [False, True])
def test_the_limit_is_a_setting_and_is_named(parser: str, chunked: bool) -> None:
    def chunks() -> Iterator[bytes]:
        yield b" " * 150
        yield b" " * 150

    with serving(make_state(max_request_bytes=200), parser) as http:
        answer = http.post("/v1/completions", content=chunks() if chunked else b" " * 300)
        fits = http.post("/v1/completions", json={"prompt": "Hi"})
    assert (answer.status_code, fits.status_code) == (413, 200)
    message = answer.json()["error"]["message"]
    assert "200 bytes" in message and "--max-request-bytes" in message


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/experts/replicate"])
def test_a_client_that_sends_its_body_slowly_is_given_up(parser: str, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{"
    state = make_state(body_timeout_s=0.05)
    with serving(state, parser) as http, connect(http) as connection:
        connection.sendall(head.encode())
        answer = b""
        while piece := connection.recv(4096):  # to the end: the server closes
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"--body-timeout" in answer and b"request_timeout" in answer
    assert source_of(state).requests == [] and source_of(state).changes == []


def test_headers_of_a_stream() -> None:
    with serving(make_state()) as http:
        streamed = http.post("/v1/chat/completions", json=chat_body(stream=True))
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.headers["cache-control"] == "no-cache"


def test_unless_disconnected() -> None:
    log: list[str] = []

    async def work() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            log.append("cleared up")
        return "never"

    async def leaves() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def stays() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def cancelled_from_outside() -> None:
        task = asyncio.create_task(unless_disconnected(stays, work()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with pytest.raises(ClientDisconnect):
        asyncio.run(unless_disconnected(leaves, work()))
    assert log == ["cleared up"]
    asyncio.run(cancelled_from_outside())
    assert log == ["cleared up", "cleared up"]
    assert asyncio.run(unless_disconnected(stays, asyncio.sleep(0, "result"))) == "result"


@pytest.mark.parametrize("given", [[], [(b"x-request-disconnect-disabled", b"?0")]])
def test_serve_leaves_what_a_client_sends_to_the_app(given: list[tuple[bytes, bytes]]) -> None:
    told: list[bool] = []

    async def serves_own(scope: Scope, _receive: Receive, _send: Send) -> None:
        told.append(parse_disconnect_disabled_header(dict(scope["headers"])))

    async def nothing(*_: Message) -> Any:
        raise AssertionError

    app: ASGIApp = serves_own
    for middleware in reversed(serve_middlewares()):
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)

    async def ask() -> None:
        await app({"type": "http", "headers": given}, nothing, nothing)

    asyncio.run(ask())
    assert told == [True]
