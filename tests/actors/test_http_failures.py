from __future__ import annotations

import openai
import pytest

from actors.http.errors import Overloaded, Unavailable
from actors.http.waiting_line import LineLimits, WaitingLine
from actors.messages import GenerateRequest, TokenEvent
from tests.actors.http_serving import (
    MODEL,
    Step,
    chat_body,
    make_state,
    official,
    serving,
    source_of,
    sse_events,
)


def test_errors_before_the_first_token_have_their_own_status() -> None:
    state = make_state(lambda request: [Overloaded("full", retry_after_s=2.5)])
    with serving(state) as http:
        for stream in (False, True):
            answer = http.post("/v1/chat/completions", json=chat_body(stream=stream))
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "3"
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        source_of(state).script = lambda request: [RuntimeError("secret detail")]
        answer = http.post("/v1/chat/completions", json=chat_body(stream=True))
        assert answer.status_code == 500
        assert "secret" not in answer.text
        text = http.get("/metrics").text
    assert 'windrose_requests_refused_total{code="429",model_name="mixtral-test"} 2.0' in text
    assert 'windrose_requests_refused_total{code="500",model_name="mixtral-test"} 1.0' in text


def test_an_error_in_mid_stream_is_the_last_event() -> None:
    def script(request: GenerateRequest) -> list[Step]:
        return [TokenEvent(request.request_id, (22557,)), Unavailable("lost the router")]

    with serving(make_state(script)) as http:
        events = sse_events(http.post("/v1/chat/completions", json=chat_body(stream=True)))
        with official(http.base_url) as client, pytest.raises(openai.APIError) as caught:
            for _ in client.completions.create(model=MODEL, prompt="x", stream=True):
                pass
    assert [event["choices"][0]["delta"]["content"] for event in events[:-1]] == ["", "Hello"]
    assert events[-1]["error"]["message"] == "lost the router"
    assert "lost the router" in str(caught.value)


def test_an_engine_that_gives_up_is_an_error_not_an_answer() -> None:
    def aborts(request: GenerateRequest) -> list[Step]:
        return [TokenEvent(request.request_id, (), None, "abort")]

    with serving(make_state(aborts)) as http:
        assert http.post("/v1/chat/completions", json=chat_body()).status_code == 503
    with serving(make_state(lambda request: [])) as http:
        assert http.post("/v1/chat/completions", json=chat_body()).status_code == 500


def test_one_failed_choice_ends_and_closes_the_others() -> None:
    def script(request: GenerateRequest) -> list[Step]:
        if request.params.seed == 5:  # the first choice's
            return [TokenEvent(request.request_id, (22557,)), Unavailable("lost")]
        return [TokenEvent(request.request_id, (22557,)), None]

    state = make_state(script)
    with serving(state) as http:
        answer = http.post("/v1/chat/completions", json=chat_body(n=3, seed=5))
    assert answer.status_code == 503
    source = source_of(state)
    assert sorted(source.closed) == sorted(r.request_id for r in source.requests[1:])


def test_overload_and_draining_refuse_before_the_source_hears() -> None:
    state = make_state(line=WaitingLine(LineLimits(2)))
    with serving(state) as http:
        assert http.post("/v1/chat/completions", json=chat_body(n=3)).status_code == 200
        state.line.sequences = 2
        full = http.post("/v1/chat/completions", json=chat_body())
        state.line.sequences = 0
        state.draining = True
        draining = http.post("/v1/chat/completions", json=chat_body())
        health = http.get("/health")
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert (draining.status_code, draining.headers["connection"]) == (503, "close")
    assert draining.headers["retry-after"] == "5"
    assert health.status_code == 503
    assert len(source_of(state).requests) == 3
