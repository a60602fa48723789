"""How requests are put to servers of different kinds, and how their streams are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.bench.burst import Arrival
from ops.bench.completions import Outcome, Sent, Target, outcome, spread
from ops.bench.http_stream import Answer, Endpoint

ENDPOINT = Endpoint.of("http://127.0.0.1:1", "/v1/completions")
OWN = Target(ENDPOINT, "m")
PEER = Target(ENDPOINT, "m", fields={}, needs_done=False)
DONE = "[DONE]"


def choice(text: str = "", finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish, **more}]}


def usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


def read(target: Target, wanted: int, events: Sequence[tuple[float, Any]]) -> Outcome:
    """What is made of events that came at these times after the request, which began at 50."""
    pieces = [
        (50.0 + time_s, f"data: {data if data == DONE else json.dumps(data)}\n\n".encode())
        for time_s, data in events
    ]
    return outcome(target, Sent(50.0, Answer(200, pieces)), wanted)


def test_tokens_are_counted_by_their_ids() -> None:
    made = read(
        OWN,
        4,
        [
            (1.0, choice("", token_ids=[7])),  # a token may print nothing
            (2.0, choice("ab", token_ids=[8, 9])),
            (3.0, choice("c", "length", token_ids=[10])),
            (4.0, {"choices": [], **usage(5, 4)}),
            (4.0, DONE),
        ],
    )
    assert made == Outcome(50.0, (Arrival(1.0, 1), Arrival(2.0, 2), Arrival(3.0, 1)), None, 5)
    assert made.num_tokens == 4


def test_without_ids_usage_counts_and_texts_tell_the_times() -> None:
    # As llama-server: a token within a character prints nothing yet, usage at the end of all.
    made = read(
        PEER,
        5,
        [
            (1.0, choice("a")),
            (2.0, choice("bc")),
            (3.0, choice("d")),
            (3.5, choice("", "length") | usage(9, 5)),
            (3.5, DONE),
        ],
    )
    assert made.error is None
    assert made.arrivals == (Arrival(1.0, 1), Arrival(2.0, 2), Arrival(3.0, 2))
    assert made.prompt_tokens == 9


def test_a_stream_that_prints_nothing_has_its_tokens_at_the_finish() -> None:
    made = read(PEER, 1, [(1.5, choice("", "length") | usage(9, 1)), (2.0, DONE)])
    assert made == Outcome(50.0, (Arrival(1.5, 1),), None, 9)


def test_a_peer_may_end_with_a_finish_reason_and_windrose_may_not() -> None:
    events = [(1.0, choice("a", token_ids=[1])), (2.0, choice("b", "length", token_ids=[2]))]
    assert read(PEER, 2, events).error is None
    assert read(OWN, 2, events).error == "the stream ended without [DONE]"
    assert read(PEER, 2, events[:1]).error == "the stream ended without [DONE]"


@pytest.mark.parametrize(
    ("events", "error", "received"),
    [
        ([(1.0, choice("a", token_ids=[1])), (2.0, DONE)], "1 tokens instead of 2", 1),
        ([(1.0, choice("a")), (2.0, DONE)], "neither ids of tokens nor a usage came", 0),
        ([(1.0, choice("a", "stop") | usage(1, 3)), (2.0, DONE)], "3 tokens instead of 2", 3),
        (
            [(1.0, choice("a", token_ids=[1])), (2.0, {"error": "lunch"})],
            'not an event of a completion: {"error": "lunch"}',
            1,
        ),
        ([(1.0, ["choices"])], 'not an event of a completion: ["choices"]', 0),
        ([(1.0, {"choices": ["x"]})], 'not an event of a completion: {"choices": ["x"]}', 0),
    ],
)
def test_what_is_wrong_with_a_stream_is_said(
    events: list[tuple[float, Any]], error: str, received: int
) -> None:
    made = read(OWN, 2, events)
    assert made.error == error
    assert made.num_tokens == received


def test_a_refusal_is_its_status_and_reason() -> None:
    refused = Sent(1.0, Answer(422, [(2.0, b'{"error":\n  "no"}')]))
    assert outcome(OWN, refused, 3).error == 'status 422: {"error": "no"}'
    assert outcome(OWN, Sent(1.0, "no route"), 3) == Outcome(1.0, (), "no route")


def test_a_request_says_what_is_asked() -> None:
    assert json.loads(OWN.body((260, 261), 9)) == {
        "model": "m",
        "prompt": [260, 261],
        "max_tokens": 9,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "return_token_ids": True,
    }


def test_fields_of_a_peer_win_and_its_prompts_may_be_text() -> None:
    fields = {"temperature": 0.5, "generation_config": "{}"}
    peer = Target(ENDPOINT, None, fields, prompt_text=True)
    body = json.loads(peer.body((260, 261, 999), 9))
    assert "model" not in body and "ignore_eos" not in body and "return_token_ids" not in body
    assert body["temperature"] == 0.5 and body["generation_config"] == "{}"
    assert len(body["prompt"].split()) == 3
    assert json.loads(peer.body("as it is", 9))["prompt"] == "as it is"


@given(total=st.integers(0, 300), count=st.integers(0, 60))
def test_tokens_are_spread_evenly(total: int, count: int) -> None:
    times_s = [float(index) for index in range(count)]
    arrivals = spread(total, times_s)
    assert sum(arrival.num_tokens for arrival in arrivals) == (total if count else 0)
    assert all(arrival.num_tokens >= 1 for arrival in arrivals)
    assert [arrival.time_s for arrival in arrivals] == sorted({a.time_s for a in arrivals})
    shares = {arrival.time_s: arrival.num_tokens for arrival in arrivals}
    for index in range(count):
        assert abs(shares.get(index, 0) - total / count) < 1
        upto = sum(n for time_s, n in shares.items() if time_s <= index)
        assert 0 <= total * (index + 1) / count - upto < 1
