from __future__ import annotations

import asyncio

import openai
import pytest

from actors.messages import GenerateRequest
from model.chat_format import ChatMessage, render_instruct
from tests.actors.http_serving import (
    MODEL,
    Step,
    chat_body,
    ids_of,
    make_state,
    official,
    says,
    serving,
    source_of,
    sse_events,
    tokenizer,
)

# Two-token characters, a line separator that only some readers split at, quotes, a backslash.
TEXT = 'Ça va? 🦙🧭 "a\\b"\u2028\u0085 end\n\nof it'


def test_official_client_gets_a_chat_answer() -> None:
    state = make_state(says(TEXT))
    with serving(state) as http, official(http.base_url) as client:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "one"}]},
            ],
            temperature=0,
            max_completion_tokens=100,
        )
    prompt = render_instruct(
        tokenizer(), [ChatMessage("system", "Be brief."), ChatMessage("user", "one")]
    )
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(ids_of(TEXT)) + 1
    assert answer.usage.total_tokens == len(prompt) + len(ids_of(TEXT)) + 1
    [request] = source_of(state).requests
    assert request.prompt_token_ids == tuple(prompt)
    assert request.params.greedy
    assert request.params.max_tokens == 100


@pytest.mark.parametrize("per_event", [1, 3])
def test_official_client_streams_chat(per_event: int) -> None:
    state = make_state(says(TEXT, per_event=per_event))
    with serving(state) as http, official(http.base_url) as client:
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "Hi"}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    *body, last = chunks
    assert body[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in body) == TEXT
    assert [c.choices[0].finish_reason for c in body] == [None] * (len(body) - 1) + ["stop"]
    assert len({c.id for c in chunks}) == 1
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == len(ids_of(TEXT)) + 1
    assert all(c.usage is None for c in body)


def test_official_async_client_streams_many_at_once() -> None:
    async def one(client: openai.AsyncOpenAI) -> str:
        stream = await client.completions.create(model=MODEL, prompt="x", stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client) for _ in range(16)))

    with serving(make_state(says("the tokens", finish="length"))) as http:
        texts = asyncio.run(all_of(f"{http.base_url}/v1"))
    # What goes on from a prompt keeps the space its first token begins with.
    assert texts == [" the tokens"] * 16


def test_prompts_times_n_are_numbered_prompt_by_prompt() -> None:
    def script(request: GenerateRequest) -> list[Step]:
        word = "first" if request.prompt_token_ids == (1, 5) else "second"
        return says(f"{word} {request.params.seed % 1000}")(request)

    state = make_state(script)
    body = {"prompt": [[1, 5], [1, 6, 7]], "n": 2, "seed": 123, "max_tokens": 20}
    with serving(state) as http:
        answer = http.post("/v1/completions", json=body).json()
        again = http.post("/v1/completions", json=body).json()
        streamed = sse_events(http.post("/v1/completions", json=body | {"stream": True}))
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [text.split()[0] for text in texts] == ["first", "first", "second", "second"]
    assert texts[0] == " first 123"
    assert texts[1].split()[1] == texts[3].split()[1] != "123"
    assert [choice["text"] for choice in again["choices"]] == texts
    for index, text in enumerate(texts):
        parts = [e["choices"][0] for e in streamed[:-1] if e["choices"][0]["index"] == index]
        assert "".join(part["text"] for part in parts) == text
        assert parts[-1]["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens"] == 5
    seeds = {request.params.seed for request in source_of(state).requests}
    assert len(seeds) == 2
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_drawn_where_none_is_given() -> None:
    state = make_state()
    with serving(state) as http:
        for _ in range(3):
            assert http.post("/v1/chat/completions", json=chat_body()).status_code == 200
        prompts = {"prompt": ["Once upon a time"] * 3, "n": 2, "max_tokens": 4}
        assert http.post("/v1/completions", json=prompts).status_code == 200
    assert len({request.params.seed for request in source_of(state).requests}) == 3 + 6


def test_limits_default_to_the_context_for_chat_and_to_16_for_completions() -> None:
    state = make_state()
    with serving(state) as http:
        http.post("/v1/chat/completions", json=chat_body())
        http.post("/v1/completions", json={"prompt": [1, 2]})
        http.post("/v1/completions", json={"prompt": [1] * 250})
    chat, short, long = source_of(state).requests
    assert chat.params.max_tokens == 256 - len(chat.prompt_token_ids)
    assert short.params.max_tokens == 16
    assert long.params.max_tokens == 6


def test_sampling_fields_reach_the_source() -> None:
    state = make_state()
    fields = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": -1,
        "min_p": 0.125,
        "seed": -1,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "repetition_penalty": 1.5,
        "logit_bias": {"7": -100, "31999": 1.5},
        "stop_token_ids": [9, 10],
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": 4,
        "max_tokens": 3,
        "user": "someone",
        "tools": None,
        "response_format": {"type": "text"},
    }
    with serving(state) as http:
        answer = http.post("/v1/chat/completions", json=chat_body(**fields))
    assert answer.status_code == 200, answer.text
    params = source_of(state).requests[0].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.25, 0, 0.125)
    assert params.seed == 2**63 - 1
    assert (params.presence_penalty, params.frequency_penalty) == (-2.0, 2.0)
    assert params.repetition_penalty == 1.5
    assert params.logit_bias == ((7, -100.0), (31999, 1.5))
    assert params.stop_token_ids == (9, 10)
    assert (params.ignore_eos, params.logprobs, params.max_tokens) == (True, 4, 3)


@pytest.mark.parametrize("stream", [False, True])
def test_return_token_ids(stream: bool) -> None:
    answer_ids = [*ids_of("ok then"), tokenizer().eos_id]
    prompt_ids = render_instruct(tokenizer(), [ChatMessage("user", "Hi")])
    options = {"return_token_ids": True, "stream": stream}
    with serving(make_state(says("ok then"))) as http:
        chat = http.post("/v1/chat/completions", json=chat_body(**options))
        text = http.post("/v1/completions", json={"prompt": "Hi"} | options)
    if stream:
        *chat_events, _ = sse_events(chat)
        *text_events, _ = sse_events(text)
        assert chat_events[0]["prompt_token_ids"] == prompt_ids
        assert text_events[0]["choices"][0]["prompt_token_ids"] == [1, *ids_of("Hi")]
        for events in chat_events[1:], text_events:
            assert [i for e in events for i in e["choices"][0]["token_ids"]] == answer_ids
        assert [e for e in chat_events[1:] + text_events if "prompt_token_ids" in e] == []
    else:
        assert chat.json()["prompt_token_ids"] == prompt_ids
        assert chat.json()["choices"][0]["token_ids"] == answer_ids
        assert text.json()["choices"][0]["prompt_token_ids"] == [1, *ids_of("Hi")]
        assert text.json()["choices"][0]["token_ids"] == answer_ids


@pytest.mark.parametrize("stream", [False, True])
def test_echo_puts_the_prompt_in_front(stream: bool) -> None:
    body = {"prompt": ["Once  upon", "A"], "echo": True, "stream": stream}
    with serving(make_state(says("a time"))) as http:
        answer = http.post("/v1/completions", json=body)
        of_ids = http.post("/v1/completions", json={"prompt": [1, *ids_of("By ids")], "echo": True})
    texts = ["", ""]
    for part in sse_events(answer)[:-1] if stream else [answer.json()]:
        for choice in part["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["Once  upon a time", "A a time"]
    assert of_ids.json()["choices"][0]["text"] == "By ids a time"
