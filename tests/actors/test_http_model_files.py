"""What a checkpoint's own files change over HTTP: defaults of a request, and whether it chats."""

from __future__ import annotations

from pathlib import Path

import httpx

from model.chat_template import JinjaFormat, NoFormat
from model.generation_config import GenerationDefaults
from tests.actors.http_serving import (
    MAX_MODEL_LEN,
    chat_body,
    make_state,
    serving,
    source_of,
    tokenizer,
)

DEFAULTS = GenerationDefaults(
    temperature=0.3, top_p=0.8, top_k=7, min_p=0.05, repetition_penalty=1.2, max_new_tokens=11
)


def test_a_request_gets_the_models_defaults_where_it_says_nothing() -> None:
    state = make_state(defaults=DEFAULTS)
    with serving(state) as http:
        assert http.post("/v1/chat/completions", json=chat_body()).status_code == httpx.codes.OK
        assert http.post("/v1/completions", json={"prompt": "a"}).status_code == httpx.codes.OK
        own = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 40}
        body = chat_body(**own, repetition_penalty=1.0)
        assert http.post("/v1/chat/completions", json=body).status_code == httpx.codes.OK
    chat, completion, explicit = (one.params for one in source_of(state).requests)
    for params in (chat, completion):
        assert (params.temperature, params.top_p, params.top_k) == (0.3, 0.8, 7)
        assert (params.min_p, params.repetition_penalty, params.max_tokens) == (0.05, 1.2, 11)
    # Also what equals OpenAI's default, when it is said.
    assert (explicit.temperature, explicit.top_p, explicit.top_k) == (1.0, 1.0, 0)
    assert (explicit.min_p, explicit.repetition_penalty, explicit.max_tokens) == (0.0, 1.0, 40)


def test_no_more_tokens_by_default_than_the_context_has_room_for() -> None:
    state = make_state(defaults=GenerationDefaults(max_new_tokens=10**6))
    with serving(state) as http:
        assert http.post("/v1/chat/completions", json=chat_body()).status_code == httpx.codes.OK
    (request,) = source_of(state).requests
    assert request.params.max_tokens == MAX_MODEL_LEN - len(request.prompt_token_ids)


def test_a_base_model_completes_and_does_not_chat() -> None:
    state = make_state(chat_format=NoFormat.of_base_model(Path("/models/Mistral-7B-v0.1")))
    with serving(state) as http:
        refused = http.post("/v1/chat/completions", json=chat_body())
        assert http.post("/v1/completions", json={"prompt": "a"}).status_code == httpx.codes.OK
    error = refused.json()["error"]
    assert refused.status_code == httpx.codes.BAD_REQUEST
    assert (error["param"], error["code"]) == ("messages", "no_chat_template")
    assert "Mistral-7B-v0.1" in error["message"] and "--chat-template" in error["message"]


def test_a_template_makes_the_prompt_and_may_refuse_it() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('no system here') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    state = make_state(chat_format=JinjaFormat(tokenizer(), template, "here"))
    with serving(state) as http:
        assert http.post("/v1/chat/completions", json=chat_body()).status_code == httpx.codes.OK
        system = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
        refused = http.post("/v1/chat/completions", json=chat_body(messages=system))
    (request,) = source_of(state).requests
    text = chat_body()["messages"][-1]["content"]
    assert list(request.prompt_token_ids) == tokenizer().encode(text, add_bos=True)
    assert refused.status_code == httpx.codes.BAD_REQUEST
    assert refused.json()["error"]["param"] == "messages"
    assert "no system here" in refused.json()["error"]["message"]
