from __future__ import annotations

import math
from typing import Any

import pytest

from actors.messages import GenerateRequest, TokenEvent
from model.sampling_params import TokenLogprobs
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
    tokenizer,
)

STORY = "one two three four five six"


def chat(script: Script, **fields: Any) -> tuple[dict[str, Any], list[str]]:
    """The answer's choice and usage, the same streamed or not, and the ids of closed requests."""
    state = make_state(script)
    options = {"return_token_ids": True} | fields
    with serving(state) as http:
        answer = http.post("/v1/chat/completions", json=chat_body(**options)).json()
        events = sse_events(
            http.post("/v1/chat/completions", json=chat_body(stream=True, **options))
        )
    assert events.pop() == "DONE"
    choice = answer["choices"][0]
    parts = [event["choices"][0] for event in events]
    assert "".join(part["delta"]["content"] for part in parts) == choice["message"]["content"]
    assert [i for part in parts for i in part.get("token_ids", [])] == choice["token_ids"]
    assert parts[-1]["finish_reason"] == choice["finish_reason"]
    assert answer["usage"]["completion_tokens"] == len(choice["token_ids"])
    logprobs = [entry for p in parts if p["logprobs"] for entry in p["logprobs"]["content"]]
    assert logprobs == (choice["logprobs"] or {"content": []})["content"]
    return choice, source_of(state).closed


@pytest.mark.parametrize("per_event", [1, 2, 100])
@pytest.mark.parametrize(("include", "shown"), [(False, "one two "), (True, "one two three four")])
def test_a_stop_string_cuts_text_and_tokens_and_aborts(
    per_event: int, include: bool, shown: str
) -> None:
    choice, closed = chat(
        says(STORY, per_event=per_event),
        stop=["never", "three four"],
        include_stop_str_in_output=include,
    )
    assert choice["message"]["content"] == shown
    assert choice["finish_reason"] == "stop"
    # Tokens up to the one that completed the stop string, however they came.
    assert tokenizer().decode(choice["token_ids"]).endswith("three four")
    assert len(closed) == (0 if per_event == 100 else 2)


def test_text_that_only_began_a_stop_string_is_shown_in_the_end() -> None:
    choice, closed = chat(says(STORY, finish="length"), stop="six seven")
    assert choice["message"]["content"] == STORY
    assert choice["finish_reason"] == "length"
    assert closed == []


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_token_is_shown_only_where_asked(include: bool) -> None:
    ids = ids_of("one two")

    def script(request: GenerateRequest) -> list[Step]:
        return [TokenEvent(request.request_id, tuple(ids), None, "stop", ids[-1])]

    choice, _ = chat(script, stop_token_ids=[ids[-1]], include_stop_str_in_output=include)
    assert choice["message"]["content"] == ("one two" if include else "one")
    assert choice["token_ids"] == ids


@pytest.mark.parametrize("include", [False, True])
def test_an_eos_that_is_a_piece_of_text_ends_the_answer_and_is_no_part_of_it(include: bool) -> None:
    ids = ids_of("one two")

    def script(request: GenerateRequest) -> list[Step]:
        return [TokenEvent(request.request_id, tuple(ids), None, "stop")]

    choice, _ = chat(script, include_stop_str_in_output=include)
    assert choice["message"]["content"] == ("one two" if include else "one")
    assert choice["finish_reason"] == "stop" and choice["token_ids"] == ids


def test_an_unfinished_character_is_shown_when_the_answer_ends() -> None:
    first_bytes = ids_of("🦙")[-4:-1]

    def script(request: GenerateRequest) -> list[Step]:
        steps: list[Step] = [TokenEvent(request.request_id, (i,)) for i in first_bytes[:-1]]
        return [*steps, TokenEvent(request.request_id, (first_bytes[-1],), None, "length")]

    choice, _ = chat(script)
    assert choice["message"]["content"] == "\ufffd" * 3


def test_an_end_without_a_token() -> None:
    def script(request: GenerateRequest) -> list[Step]:
        return [
            TokenEvent(request.request_id, (22557,)),
            TokenEvent(request.request_id, (), None, "length"),
        ]

    choice, _ = chat(script)
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "length")
    choice, _ = chat(script, stop="x")
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "length")


def with_logprobs(request: GenerateRequest) -> list[Step]:
    """A word, a byte of an emoji and EOS, two at a time; the first is not among the best."""
    space_e, emoji_byte = ids_of("é")[0], ids_of("🦙")[-4]
    values = (
        TokenLogprobs(-2.5, ((space_e, -0.5), (5000, -1.5))),
        TokenLogprobs(-3.5, ((emoji_byte, -0.25), (5001, -math.inf))),
        TokenLogprobs(-0.125, ((2, -0.125), (5000, -1.0))),
    )
    ids = (5000, emoji_byte, 2)
    return [
        TokenEvent(request.request_id, ids[:2], values[:2]),
        TokenEvent(request.request_id, ids[2:], values[2:], "stop", 2),
    ]


@pytest.mark.parametrize("stop", [[], ["zzz"]])
def test_chat_logprobs(stop: list[str]) -> None:
    choice, _ = chat(with_logprobs, logprobs=True, top_logprobs=2, stop=stop)
    first, second, third = choice["logprobs"]["content"]
    assert first["token"] == tokenizer().token_text(5000)
    assert first["bytes"] == list(tokenizer().token_bytes(5000))
    assert first["logprob"] == -2.5
    assert [top["logprob"] for top in first["top_logprobs"]] == [-0.5, -1.5]
    assert "".join(top["token"] for top in first["top_logprobs"]).startswith(" é")
    assert second["bytes"] == [0xF0]
    assert second["top_logprobs"][1]["logprob"] == -9999.0
    assert (third["token"], third["bytes"]) == ("</s>", [])


@pytest.mark.parametrize("stream", [False, True])
def test_completion_logprobs(stream: bool) -> None:
    def script(request: GenerateRequest) -> list[Step]:
        ids = tuple(ids_of("né 🦙 x"))
        values = tuple(TokenLogprobs(-float(i), ((5000, -0.5),)) for i in range(len(ids)))
        return [
            TokenEvent(request.request_id, ids[:3], values[:3]),
            TokenEvent(request.request_id, ids[3:], values[3:], "length"),
        ]

    body = {"prompt": "a", "logprobs": 1, "stream": stream}
    with serving(make_state(script)) as http:
        answer = http.post("/v1/completions", json=body)
    parts = sse_events(answer)[:-1] if stream else [answer.json()]
    found: dict[str, list[Any]] = {}
    for part in parts:
        for key, entries in part["choices"][0]["logprobs"].items():
            found.setdefault(key, []).extend(entries)
    ids = ids_of("né 🦙 x")
    text = " né 🦙 x"
    assert "".join(part["choices"][0]["text"] for part in parts) == text
    assert found["tokens"] == [tokenizer().token_text(i) for i in ids]
    assert found["token_logprobs"] == [-float(i) for i in range(len(ids))]
    assert found["top_logprobs"][1] == {
        tokenizer().token_text(5000): -0.5,
        tokenizer().token_text(ids[1]): -1.0,
    }
    # Where a token is whole text, it stands at its offset.
    whole = [i for i, token in enumerate(found["tokens"]) if not token.startswith("<0x")]
    assert len(whole) >= 3
    for i in whole:
        assert text.startswith(found["tokens"][i], found["text_offset"][i])
