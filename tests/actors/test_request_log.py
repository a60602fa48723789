"""The record of each request at its end, and the line it becomes."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from actors.http.doors import Doors, KeyDigests, digest
from actors.http.errors import Unavailable
from actors.http.request_log import request_level, write_line
from actors.http.request_record import RequestRecord, SequenceRecord
from actors.http.serving_state import ServingState
from actors.messages import GenerateRequest, TokenEvent
from tests.actors.http_serving import Step, chat_body, ids_of, make_state, says, serving
from tests.actors.test_log_lines import written

CHAT = "/v1/chat/completions"
SECRET = "What is the pirate's name?"


def with_times(request: GenerateRequest) -> list[Step]:
    """Four tokens; the first waited 0.1 ms; an actor was lost on the way."""
    a, b, c, d = ids_of("one two three four")
    name = request.request_id
    return [
        TokenEvent(name, (a,), num_cached_tokens=2, queue_s=1e-4),
        TokenEvent(name, (b, c), recovered=(1.0, 2.5)),
        TokenEvent(name, (d,), finish_reason="length"),
    ]


def fails_late(request: GenerateRequest) -> list[Step]:
    return [TokenEvent(request.request_id, (22557,)), Unavailable("lost")]


def lines_of(state: ServingState, *bodies: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
    """The lines that these requests and a few others write in JSON."""
    state.on_end = lambda record: write_line(record, request_level("json"))
    with written("json") as stream, serving(state) as http:
        for body in bodies:
            http.post(CHAT, json=body, headers={"X-Request-Id": "r-1", **headers})
        http.get("/health")
        http.get("/metrics")
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("stream", [False, True])
def test_a_line_for_each_request_and_none_for_probes(stream: bool) -> None:
    doors = Doors(KeyDigests(api=(digest("sk-1"),)))
    body = chat_body(stream=stream, messages=[{"role": "user", "content": SECRET}])
    state = make_state(with_times, doors=doors)
    (line,) = lines_of(state, body, authorization="Bearer sk-1")
    told = {name: value for name, value in line.items() if not name.endswith("_ms")}
    assert told | {"time": "", "message": "", "prompt_tokens": 0} == {
        "time": "",
        "level": "info",
        "event": "request",
        "message": "",
        "logger": "actors.http.request_log",
        "process": "attention",
        "request_id": "r-1",
        "caller": f"key {digest('sk-1').hex()[:12]}",
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "finish_reason": "length",
        "prompt_tokens": 0,
        "completion_tokens": 4,
        "cached_tokens": 2,
        "recoveries": 1,
    }
    assert 0.1 <= line["queue_ms"] <= line["ttft_ms"] <= line["total_ms"]
    assert "sk-1" not in json.dumps(line) and "pirate" not in json.dumps(line)


def test_several_choices_are_summed() -> None:
    (line,) = lines_of(make_state(with_times), chat_body(n=2))
    assert line["finish_reason"] == ["length", "length"]
    assert (line["completion_tokens"], line["cached_tokens"], line["recoveries"]) == (8, 2, 2)


def test_prompts_and_answers_only_where_they_are_asked_for() -> None:
    body = chat_body(messages=[{"role": "user", "content": SECRET}])
    (quiet,) = lines_of(make_state(says("Roberto it is")), body)
    (loud,) = lines_of(make_state(says("Roberto it is"), log_prompts=True), body)
    assert "prompt" not in quiet and "answer" not in quiet
    assert loud["prompt"]["messages"][0]["content"] == SECRET
    assert loud["answer"] == "Roberto it is"


def test_failures_are_warnings_and_name_the_error() -> None:
    lines = lines_of(make_state(fails_late), chat_body(stream=True), chat_body(n=-1))
    late, bad = sorted(lines, key=lambda line: int(line["status"]))
    assert (late["level"], late["status"]) == ("warning", 200)  # the stream had begun
    assert late["error"] == "service_unavailable"
    assert (bad["level"], bad["status"], bad["error"]) == ("info", 400, "invalid_request_error")
    assert "completion_tokens" not in bad


def test_text_has_requests_only_where_they_failed_or_at_debug() -> None:
    record = RequestRecord("r", "POST", CHAT, status=200)
    failed = RequestRecord("r", "POST", CHAT, status=503)
    assert request_level("text") == logging.DEBUG
    with written("text") as stream:
        write_line(record, request_level("text"))
        assert stream.getvalue() == ""
        write_line(failed, request_level("text"))
        assert stream.getvalue().rstrip().endswith(f"POST {CHAT} 503 request_id=r")


def test_a_path_cannot_write_lines_of_its_own() -> None:
    state = make_state()
    state.on_end = lambda record: write_line(record, logging.INFO)
    with written("text") as stream, serving(state) as http:
        http.get("/x%0a2026-11-21T00:00:00.000Z%1b[31m")
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line and r"\n2026-11-21" in line


def test_a_client_that_left_is_noted() -> None:
    ended: list[RequestRecord] = []
    state = make_state(lambda request: [TokenEvent(request.request_id, (22557,)), None])
    state.on_end = ended.append
    with serving(state) as http, http.stream("POST", CHAT, json=chat_body(stream=True)) as answer:
        next(answer.iter_bytes())
    (record,) = ended
    assert [one.finish_reason for one in record.sequences] == ["abort"]
    assert not record.failed


def test_times_of_a_sequence_by_hand() -> None:
    sequence = SequenceRecord(prompt_tokens=3, arrival_s=100.0)
    sequence.note(TokenEvent("r", (7,), num_cached_tokens=2, queue_s=0.5), 101.0)
    sequence.note(TokenEvent("r", (8, 9), recovered=(101.5, 102.0)), 103.0)
    sequence.note(TokenEvent("r", (), finish_reason="length"), 104.0)
    assert (sequence.first_row_s, sequence.first_token_s, sequence.last_token_s) == (
        100.5,
        101,
        103,
    )
    assert (sequence.completion_tokens, sequence.cached_tokens) == (3, 2)
    assert sequence.recoveries == [(101.5, 102.0)]
    # The actor's clock may be ahead: a first row never ran after its token.
    ahead = SequenceRecord(3, 100.0)
    ahead.note(TokenEvent("r", (7,), queue_s=9.0), 101.0)
    assert ahead.first_row_s == 101.0
