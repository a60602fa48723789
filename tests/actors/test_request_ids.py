"""X-Request-Id: in and out on every kind of answer, and on into the engine."""

from __future__ import annotations

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.http.doors import Doors, KeyDigests, digest
from actors.http.errors import Unavailable
from actors.http.rate_limits import RateLimits
from actors.http.request_ids import usable
from actors.http.serving_state import ServingState
from actors.messages import GenerateRequest, TokenEvent
from tests.actors.http_serving import Step, chat_body, make_state, serving, source_of

CHAT = "/v1/chat/completions"
GUARDED = Doors(KeyDigests(api=(digest("a"),)))


def fails_late(request: GenerateRequest) -> list[Step]:
    return [TokenEvent(request.request_id, (22557,)), Unavailable("lost")]


def breaks(_request: GenerateRequest) -> list[Step]:
    return [ZeroDivisionError("of the server's own")]


def nobody(_request: GenerateRequest) -> list[Step]:
    return [Unavailable("nobody serves")]


def no_rate() -> ServingState:
    state = make_state(rates=RateLimits(requests_per_minute=1))
    state.rates.take_request("anybody", 1e12)
    return state


def unwell() -> ServingState:
    state = make_state()
    source_of(state).is_ready = False
    return state


@pytest.mark.parametrize(
    ("state", "path", "body", "status"),
    [
        (make_state(), CHAT, chat_body(), 200),
        (make_state(), CHAT, chat_body(stream=True), 200),
        (make_state(fails_late), CHAT, chat_body(stream=True), 200),
        (make_state(), CHAT, chat_body(n=-1), 400),
        (make_state(), CHAT, b"{", 400),
        (make_state(doors=GUARDED), CHAT, chat_body(), 401),
        (make_state(doors=Doors(beyond_loopback=True)), "/v1/experts/rebalance", {}, 403),
        (make_state(), "/v1/nothing", {}, 404),
        (make_state(), "/v1/models", {}, 405),
        (make_state(max_request_bytes=10), CHAT, chat_body(), 413),
        (no_rate(), CHAT, chat_body(), 429),
        (make_state(breaks), CHAT, chat_body(), 500),
        (make_state(nobody), CHAT, chat_body(), 503),
        (make_state(nobody), CHAT, chat_body(stream=True), 503),
        (unwell(), "/health", None, 503),
    ],
    ids=lambda value: str(value) if isinstance(value, int | str) else "",
)
def test_every_answer_has_the_clients_id(
    state: ServingState, path: str, body: object, status: int
) -> None:
    with serving(state) as http:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        answer = http.request(method, path, content=sent, headers={"X-Request-Id": "my/id=7~"})
    assert answer.status_code == status
    assert answer.headers.get_list("x-request-id") == ["my/id=7~"]


def test_a_failure_outside_the_completions_has_it_too() -> None:
    state = make_state()

    async def broken() -> dict[str, object]:
        raise ZeroDivisionError

    source_of(state).experts = broken  # type: ignore[method-assign]
    with serving(state) as http:
        # uvicorn closes the connection behind it.
        headers = {"X-Request-Id": "x1", "Connection": "close"}
        answer = http.get("/v1/experts", headers=headers)
        assert (answer.status_code, answer.headers["x-request-id"]) == (500, "x1")
        text = http.get("/metrics").text
    assert 'requests_refused_total{code="500",model_name="mixtral-test"} 1.0' in text


@given(st.lists(st.text(st.characters(max_codepoint=255), max_size=140), max_size=3))
def test_only_one_short_printable_word_is_taken_over(given: list[str]) -> None:
    fine = len(given) == 1 and 1 <= len(given[0]) <= 128
    fine = fine and all(" " < char <= "~" for char in given[0])
    request_id = usable(given)
    assert request_id == given[0] if fine else len(request_id) == 32


def test_strange_ids_and_bytes_are_replaced() -> None:
    with serving(make_state()) as http:
        made: set[bytes] = set()
        for value in (b"", b"x" * 129, b"two words", b"\xff\xfe", b"caf\xc3\xa9", b"a\tb"):
            with socket.create_connection((http.base_url.host, http.base_url.port or 0)) as raw:
                head = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: "
                raw.sendall(head + value + b"\r\n\r\n")
                raw.settimeout(10)
                answer = b""
                while piece := raw.recv(4096):
                    answer += piece
            assert answer.startswith(b"HTTP/1.1 200")
            lines = [one for one in answer.split(b"\r\n") if one.startswith(b"x-request-id: ")]
            made.add(*lines)
    assert len(made) == 6
    assert all(len(line) == len("x-request-id: ") + 32 for line in made)


def test_the_engine_knows_a_sequence_by_it_and_ids_used_twice_stay_apart() -> None:
    state = make_state()
    with serving(state) as http:
        for _ in range(2):
            http.post(CHAT, json=chat_body(n=2), headers={"X-Request-Id": "again"})
    names = [request.request_id for request in source_of(state).requests]
    assert len(set(names)) == 4
    assert all(name.startswith("again/") for name in names)


def test_limits_are_told_and_refusals_counted() -> None:
    state = make_state(
        doors=GUARDED,
        rates=RateLimits(requests_per_minute=2, tokens_per_minute=1000),
        allowed_origins=("https://a.example",),
    )
    headers = {"authorization": "Bearer a", "origin": "https://a.example"}
    with serving(state) as http:
        whole = http.post(CHAT, json=chat_body(), headers=headers)
        stream = http.post(CHAT, json=chat_body(stream=True), headers=headers)
        late = http.post(CHAT, json=chat_body(), headers=headers)
        unknown = [http.post(CHAT, json=chat_body()) for _ in range(3)]
        text = http.get("/metrics").text
    usage = whole.json()["usage"]["total_tokens"]
    assert whole.headers["x-ratelimit-remaining-requests"] == "1"
    # The bucket refills by 17 tokens a second meanwhile.
    assert 0 <= int(whole.headers["x-ratelimit-remaining-tokens"]) - (1000 - usage) <= 100
    assert stream.headers["x-ratelimit-remaining-requests"] == "0"
    assert late.status_code == 429
    assert late.headers["x-ratelimit-remaining-requests"] == "0"
    assert late.headers["x-ratelimit-limit-requests"] == "2"
    exposed = whole.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", *(name for name in whole.headers if "ratelimit" in name)} <= {*exposed}
    assert [one.status_code for one in unknown] == [401] * 3
    assert not any("ratelimit" in name for name in unknown[0].headers)
    assert 'requests_refused_total{code="401",model_name="mixtral-test"} 3.0' in text
    assert 'requests_refused_total{code="429",model_name="mixtral-test"} 1.0' in text
