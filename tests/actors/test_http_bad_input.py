from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.actors.http_serving import MODEL, chat_body, make_state, serving, source_of

LONG = "word " * 300  # more than MAX_MODEL_LEN tokens
ASSISTANT = {"role": "assistant", "content": "Hello"}
USER = {"role": "user", "content": "Hi"}

BAD_CHATS: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"model": "gpt-4"}, 404, "model", "model_not_found"),
    ({"messages": []}, 400, "messages", None),
    ({"messages": [USER, USER]}, 400, "messages", None),
    ({"messages": [ASSISTANT]}, 400, "messages", None),
    ({"messages": [USER, ASSISTANT]}, 400, "messages", None),
    ({"messages": [{"role": "king", "content": "x"}]}, 400, "messages[0].role", None),
    (
        {"messages": [{"role": "user", "content": LONG}]},
        400,
        "messages",
        "context_length_exceeded",
    ),
    ({"max_tokens": 256}, 400, "max_tokens", "context_length_exceeded"),
    (
        {"max_completion_tokens": 10**30},
        400,
        "max_completion_tokens",
        "context_length_exceeded",
    ),
    ({"max_tokens": 0}, 400, "max_tokens", None),
    ({"temperature": -1}, 400, "temperature", None),
    ({"temperature": float("nan")}, 400, "temperature", None),
    ({"logprobs": True, "top_logprobs": 1000}, 400, "top_logprobs", None),
    ({"n": 0}, 400, "n", None),
    ({"logit_bias": {"32000": 1}}, 400, "logit_bias", None),
    ({"stop_token_ids": [-1]}, 400, "stop_token_ids", None),
    ({"stop": ["a"] * 100}, 400, "stop", None),
    ({"surprise": 1}, 400, "surprise", "unknown_parameter"),
    ({"\ud800": 1}, 400, "\ud800", "unknown_parameter"),
    ({"tools": [{}]}, 400, "tools", "unsupported_parameter"),
]


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize("stream", [False, True])
def test_bad_chat_requests(stream: bool) -> None:
    state = make_state()
    with serving(state) as http:
        for fields, status, param, code in BAD_CHATS:
            content = json.dumps(chat_body(stream=stream) | fields).encode()
            answer = http.post("/v1/chat/completions", content=content)
            error = error_of(answer)
            assert (answer.status_code, error["param"]) == (status, param), fields
            assert error["type"] == "invalid_request_error"
            if code is not None:
                assert error["code"] == code, fields
        assert source_of(state).requests == []
        assert http.post("/v1/chat/completions", json=chat_body()).status_code == 200


def test_lengths_are_told() -> None:
    with serving(make_state()) as http:
        messages = [{"role": "user", "content": LONG}]
        too_long = http.post("/v1/chat/completions", json=chat_body(messages=messages))
        no_room = http.post("/v1/completions", json={"prompt": [1] * 200, "max_tokens": 57})
        fits = http.post("/v1/completions", json={"prompt": [1] * 200, "max_tokens": 56})
        full = http.post("/v1/completions", json={"prompt": [1] * 256})
    assert "256" in error_of(too_long)["message"]
    message = error_of(no_room)["message"]
    assert all(number in message for number in ("57", "200", "256"))
    assert fits.status_code == 200
    assert error_of(full)["param"] == "prompt"


def test_bad_completion_requests() -> None:
    state = make_state()
    with serving(state) as http:
        for prompt in ([], [32000], [-1], [[1], [99999]], "\ud800", 5, None):
            content = json.dumps({"prompt": prompt}).encode()
            answer = http.post("/v1/completions", content=content)
            assert (answer.status_code, error_of(answer)["param"]) == (400, "prompt"), prompt
        for content in (b"{", b"\xff", b"[]", b"[" * 200_000, b"", b'{"prompt": "\xc3("}'):
            answer = http.post("/v1/completions", content=content)
            assert (answer.status_code, error_of(answer)["param"]) == (400, None), content[:20]
        assert source_of(state).requests == []
        assert http.post("/v1/completions", json={"prompt": "Hi"}).json()["model"] == MODEL


def test_wrong_paths_and_methods() -> None:
    with serving(make_state()) as http:
        missing = http.get("/v1/nothing")
        method = http.get("/v1/chat/completions")
        model = http.get("/v1/models/a/b")
        slash = http.post("/v1/completions/", json={"prompt": "Hi"})
    assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")
    assert (method.status_code, error_of(method)["code"]) == (405, "method_not_allowed")
    assert method.headers["allow"] == "POST"
    assert (model.status_code, error_of(model)["code"]) == (404, "model_not_found")
    assert slash.status_code == 404
