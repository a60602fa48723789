"""Requests that no client should send: from the OpenAPI document, and bytes of no document.

Seeded: a failure comes again. `--fuzz-cases N` sends that many; `make fuzz` sends 10,000.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from actors.http.api import create_api
from actors.http.serving_state import ServingState
from actors.messages import GenerateRequest
from model.head import ModelHead
from tests.actors.http_serving import Step, chat_body, gives, make_state, says, serving, source_of

PARSERS = ["h11", "httptools"]
SILENCE_S = 10.0  # nobody waits that long for an answer: it hangs
BODY_TIMEOUT_S = 0.3
GENERATES = ModelHead()
POOLS = (ModelHead("MixtralModel"), ModelHead("MixtralForSequenceClassification", ("a", "b")))
HALF_SENT = 0.02  # of the raw requests: the server waits for the rest of them


class Watched:
    """A server whose event loop a test may look into."""

    def __init__(self, http: httpx.Client, state: ServingState) -> None:
        self.http = http
        self.state = state
        self._loop: asyncio.AbstractEventLoop | None = None

    def script(self, request: GenerateRequest) -> list[Step]:
        self._loop = asyncio.get_running_loop()
        return says("ok")(request) if request.pooling is None else gives([0.25, 0.75])(request)

    def tasks(self) -> set[str]:
        """Names of the coroutines that tasks run, those of open connections left out."""
        assert self._loop is not None, "a request was served"

        async def names() -> list[str]:
            own = asyncio.current_task()
            tasks = [task for task in asyncio.all_tasks() if task is not own]
            return [getattr(task.get_coro(), "__qualname__", "?") for task in tasks]

        return set(asyncio.run_coroutine_threadsafe(names(), self._loop).result(10))

    def check_healthy(self) -> None:
        task = self.state.head.task
        path = {"embed": "/v1/embeddings", "classify": "/classify"}.get(task)
        if path is None:
            answer = self.http.post("/v1/chat/completions", json=chat_body())
        else:
            answer = self.http.post(path, json={"input": "Hi"})
        assert answer.status_code == 200, answer.text
        assert self.http.get("/health").status_code == 200


@contextmanager
def watched(parser: str = "auto", head: ModelHead = GENERATES) -> Iterator[Watched]:
    """At the end it must be healthy, hold no request, and run no task it did not run before."""
    state = make_state(max_request_bytes=20_000, body_timeout_s=BODY_TIMEOUT_S, head=head)
    with serving(state, parser) as http:
        server = Watched(http, state)
        source_of(state).script = server.script
        server.check_healthy()
        before = server.tasks()
        yield server
        server.check_healthy()
        assert (state.num_in_flight, state.line.sequences, state.line.tokens) == (0, 0, 0)
        assert source_of(state).closed == []
        assert server.tasks() <= before


def operations() -> list[bool]:
    """Of each operation of the document, whether it takes a body."""
    paths = create_api(make_state()).openapi()["paths"]
    return ["requestBody" in operation for path in paths.values() for operation in path.values()]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_requests_from_the_document_get_answers_of_the_document(
    mode: GenerationMode, request: pytest.FixtureRequest
) -> None:
    asked = [one for one in operations() if one or mode is GenerationMode.POSITIVE]
    cases = max(1, request.config.getoption("--fuzz-cases") // 4 // len(asked))
    met: set[int] = set()
    with watched() as server:
        document = schemathesis.openapi.from_url(f"{server.http.base_url}/openapi.json")
        with requests.Session() as session:
            for found in document.get_all_operations():
                assert isinstance(found, Ok), found  # else the document is wrong
                operation = found.ok()
                if mode is GenerationMode.NEGATIVE and not operation.body:
                    continue  # nothing there can be wrong
                _send(operation.as_strategy(generation_mode=mode), cases, session, met)
    assert 200 in met
    assert mode is GenerationMode.POSITIVE or 400 in met


@pytest.mark.parametrize("head", POOLS, ids=["embed", "classify"])
def test_so_do_those_to_models_that_pool(head: ModelHead, request: pytest.FixtureRequest) -> None:
    cases = max(1, request.config.getoption("--fuzz-cases") // 40)
    path = "/v1/embeddings" if head.task == "embed" else "/classify"
    met: set[int] = set()
    with watched(head=head) as server, requests.Session() as session:
        document = schemathesis.openapi.from_url(f"{server.http.base_url}/openapi.json")
        for mode in GenerationMode:
            _send(document[path]["POST"].as_strategy(generation_mode=mode), cases, session, met)
    assert {200, 400} <= met


def _send(strategy: Any, cases: int, session: requests.Session, met: set[int]) -> None:
    @seed(20_260_101)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def one(case: Case[Any]) -> None:
        response = case.call(session=session, timeout=SILENCE_S)
        met.add(response.status_code)
        assert response.status_code < 500, (response.status_code, case.as_curl_command())
        if response.status_code == 405:
            return  # of a path that the fuzzer has changed into another route's
        case.validate_response(
            response,
            checks=[
                status_code_conformance,
                content_type_conformance,
                response_schema_conformance,
            ],
        )

    one()


@pytest.mark.parametrize("parser", PARSERS)
def test_raw_bytes_get_an_answer_or_an_end(parser: str, request: pytest.FixtureRequest) -> None:
    cases = max(1, request.config.getoption("--fuzz-cases") // 4)
    dice = random.Random(f"windrose {parser}")
    with watched(parser) as server:
        for number in range(cases):
            raw = _raw_request(dice)
            status = _status_of(server, raw, ends=dice.random() > HALF_SENT)
            assert status is None or status < 500, (number, status, raw[:500])


def _status_of(server: Watched, raw: bytes, ends: bool) -> int | None:
    """Of the first answer; None where the server only closed. Raises TimeoutError if it hangs."""
    url = server.http.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=SILENCE_S) as connection:
        try:
            connection.sendall(raw)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            while b"\r\n" not in answer and (piece := connection.recv(65536)):
                answer += piece
        except (ConnectionResetError, BrokenPipeError):
            return None
        except TimeoutError:
            # Half a head: the server cannot know whether more is to come. Only then may it wait.
            if not ends and b"\r\n\r\n" not in raw:
                return None
            raise
    return int(answer.split(b" ", 2)[1]) if answer else None


# What a raw request is made of: each a function of the dice.

PATHS = ["/v1/completions", "/v1/chat/completions", "/v1/experts/replicate", "/v1/models",
         "/v1/embeddings", "/classify",
         "/health", "/v1/models/%ff", "/v1/../v1/completions", "//", "*", "/\x00", "/" + "a" * 9000,
         "http://other/v1/completions", "", "/v1/completions?a=%zz&b", "/é"]  # fmt: skip
METHODS = ["POST", "POST", "POST", "GET", "PUT", "OPTIONS", "CONNECT", "P\x00ST", "", "x" * 5000]
VERSIONS = ["HTTP/1.1"] * 6 + ["HTTP/1.0", "HTTP/9.9", "HTTP/2", "", "\x00"]
HEADERS = [
    "Host: x", "Host:", "Host: a\r\nHost: b", "Content-Type: application/json",
    "Content-Type: \xff",
    "Content-Length: -1", "Content-Length: 1e9", "Content-Length: 99999999999999999999999",
    "Content-Length: 5\r\nContent-Length: 7", "Content-Length: +5",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 3", "Expect: 100-continue", "Expect: miracles",
    "Authorization: Bearer \xff\xfe", "Authorization: Basic !!", "X-Request-Id: " + "y" * 300,
    "Connection: Upgrade\r\nUpgrade: websocket", "no colon", ": no name", " folded: x", "A\x00b: c",
    "Big: " + "z" * 70_000, "Cookie: " + "a=b; " * 500, "Origin: null",
]  # fmt: skip
NUMBERS = [
    "1e999",
    "-0",
    "1" * 5000,
    "1e-400",
    "9" * 30,
    "0.1e+",
    "NaN",
    "-Infinity",
    "0x10",
    "1.0",
]
FIELDS = ["max_tokens", "temperature", "top_p", "top_k", "seed", "n", "stop", "logit_bias",
          "stream",
          "logprobs", "priority", "stop_token_ids", "prompt", "messages", "model", "echo", "user",
          "stream_options", "metadata", "expert", "layer", "to"]  # fmt: skip
VALUES: list[Callable[[random.Random], str]] = [
    lambda dice: dice.choice(NUMBERS),
    lambda dice: json.dumps("".join(chr(dice.randrange(0x300)) for _ in range(dice.randrange(30)))),
    lambda dice: '"\\ud83e"',
    lambda dice: "[" * (depth := dice.choice([3, 500, 9000])) + "]" * depth,
    lambda dice: '{"a":' * (depth := dice.choice([3, 500, 3000])) + "1" + "}" * depth,
    lambda dice: dice.choice(["null", "true", "[]", "{}", '""', "[1, 5, 7]", '{"5": 1e999}']),
    lambda dice: json.dumps([dice.randrange(-5, 2**70) for _ in range(dice.randrange(6))]),
    lambda dice: '[{"role": "user", "content": ' + dice.choice(['"x"', "[]", "5", "null"]) + "}]",
]


def _body(dice: random.Random) -> bytes:
    fields = [f"{json.dumps(dice.choice(FIELDS))}: {dice.choice(VALUES)(dice)}" for _ in range(3)]
    if dice.random() < 0.5:
        fields.append('"prompt": "Hi"')
    body = ("{" + ", ".join(fields) + "}").encode(errors="replace")
    kind = dice.randrange(6)
    if kind == 0:
        return body[: dice.randrange(len(body))]
    if kind == 1:
        return dice.randbytes(dice.randrange(300))
    if kind == 2:
        at = dice.randrange(len(body))
        return body[:at] + bytes([dice.randrange(256)]) + body[at + 1 :]
    return body


def _chunked(body: bytes, dice: random.Random) -> bytes:
    size = dice.choice([b"%x" % len(body), b"-1", b"zz", b"", b"f" * 20, b"%x;a=b" % len(body)])
    end = dice.choice([b"\r\n0\r\n\r\n", b"\r\n", b"", b"\r\n0\r\nTrailer: x\r\n\r\n"])
    return size + b"\r\n" + body + end


def _raw_request(dice: random.Random) -> bytes:
    if dice.random() < 0.05:
        return dice.randbytes(dice.randrange(1, 400))
    ordinary = dice.random() < 0.6  # so that the routes are reached, not only the parser
    method = "POST" if ordinary else dice.choice(METHODS)
    path = dice.choice(PATHS[:3]) if ordinary else dice.choice(PATHS)
    version = "HTTP/1.1" if ordinary else dice.choice(VERSIONS)
    body = _body(dice)
    headers = ["Host: x"] if ordinary else []
    chunked = dice.random() < 0.2
    if chunked:
        headers.append("Transfer-Encoding: chunked")
    else:
        length = len(body) + (dice.choice([-3, 5, 10**6]) if dice.random() < 0.1 else 0)
        headers.append(f"Content-Length: {length}")
    headers += dice.sample(HEADERS, dice.randrange(1 if ordinary else 4))
    head = f"{method} {path} {version}\r\n" + "".join(f"{header}\r\n" for header in headers)
    line_end = b"\n" if dice.random() < 0.03 else b"\r\n"
    return head.encode("latin-1") + line_end + (_chunked(body, dice) if chunked else body)
