from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.http.errors import BadRequest
from actors.http.openai_schema import (
    UNSUPPORTED,
    ChatRequest,
    CompletionRequest,
    SamplingFields,
    parse_request,
)

USER = {"role": "user", "content": "Hi"}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["\ud800", "user", "text", -1, 2**70]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "7"]), inner)
    ),
    max_leaves=8,
)
FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *UNSUPPORTED, "what"})


def chat(**fields: Any) -> ChatRequest:
    return parse_request(json.dumps({"messages": [USER]} | fields).encode(), ChatRequest)


def completion(**fields: Any) -> CompletionRequest:
    return parse_request(json.dumps({"prompt": "Hi"} | fields).encode(), CompletionRequest)


def refused(body: bytes, schema: type[SamplingFields] = ChatRequest) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse_request(body, schema)
    return caught.value


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("temperature", -1, "temperature"),
        ("temperature", 2.001, "temperature"),
        ("temperature", "1", "temperature"),
        ("temperature", True, "temperature"),
        ("temperature", float("nan"), "temperature"),
        ("top_p", float("inf"), "top_p"),
        ("top_p", 0, "top_p"),
        ("top_p", 1.1, "top_p"),
        ("top_k", -2, "top_k"),
        ("top_k", 1.0, "top_k"),
        ("min_p", -0.1, "min_p"),
        ("seed", 2**63, "seed"),
        ("seed", -(2**63) - 1, "seed"),
        ("seed", 10**4000, "seed"),
        ("presence_penalty", 2.1, "presence_penalty"),
        ("frequency_penalty", float("-inf"), "frequency_penalty"),
        ("repetition_penalty", 0, "repetition_penalty"),
        ("repetition_penalty", 1e-40, "repetition_penalty"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", -5, "max_tokens"),
        ("max_tokens", 3.5, "max_tokens"),
        ("max_completion_tokens", 0, "max_completion_tokens"),
        ("priority", 1.5, "priority"),
        ("priority", "1", "priority"),
        ("priority", True, "priority"),
        ("priority", [1], "priority"),
        ("priority", 2**63, "priority"),
        ("priority", -(2**63) - 1, "priority"),
        ("n", 0, "n"),
        ("n", 1000, "n"),
        ("n", False, "n"),
        ("logprobs", 5, "logprobs"),
        ("top_logprobs", 1000, "top_logprobs"),
        ("top_logprobs", 2, "top_logprobs"),  # without logprobs
        ("logit_bias", [1], "logit_bias"),
        ("logit_bias", {"x": 1}, "logit_bias"),
        ("logit_bias", {"-1": 1}, "logit_bias"),
        ("logit_bias", {"\u0663": 1}, "logit_bias"),  # a digit, but not an ASCII one
        ("logit_bias", {"5": 1, "05": 2}, "logit_bias"),
        ("logit_bias", {"5": 101}, "logit_bias"),
        ("logit_bias", {"5": True}, "logit_bias"),
        ("logit_bias", {"5": float("nan")}, "logit_bias"),
        ("stop", ["a"] * 100, "stop"),
        ("stop", "", "stop"),
        ("stop", 5, "stop"),
        ("stop", ["a", None], "stop"),
        ("stop", ["a", "\ud800"], "stop[1]"),
        ("stop_token_ids", ["1"], "stop_token_ids[0]"),
        ("stop_token_ids", list(range(300)), "stop_token_ids"),
        ("stream", 1, "stream"),
        ("stream_options", {"include_usage": True}, "stream_options"),  # without stream
        ("stream_options", {"what": 1}, "stream_options.what"),
        ("model", 5, "model"),
        ("messages", [], "messages"),
        ("messages", "Hi", "messages"),
        ("messages", [USER, "Hi"], "messages[1]"),
        ("messages", [{"role": "tool", "content": "x"}], "messages[0].role"),
        ("messages", [{"role": "user"}], "messages[0].content"),
        ("messages", [{"role": "user", "content": None}], "messages[0].content"),
        ("messages", [{"role": "user", "content": "\ud800"}], "messages[0].content"),
        ("messages", [USER | {"tool_calls": []}], "messages[0].tool_calls"),
        (
            "messages",
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content",
        ),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
        ("tools", [{"type": "function"}], "tools"),
        ("functions", [], "functions"),
        ("response_format", {"type": "json_object"}, "response_format"),
        ("modalities", ["text", "audio"], "modalities"),
        ("prompt", "a prompt is not for chat", "prompt"),
        ("min_tokens", 3, "min_tokens"),
    ],
)
def test_a_bad_field_is_named(field: str, value: object, param: str) -> None:
    body = json.dumps({"messages": [USER]} | {field: value}).encode()
    error = refused(body)
    assert error.param == param
    assert field in error.message
    assert error.status == 400


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", ["a", 1]),
        ("prompt", [1, "a"]),
        ("prompt", [[1], 2]),
        ("prompt", [1.0]),
        ("prompt", [True]),
        ("prompt", {"a": 1}),
        ("prompt", "\udfff"),
        ("prompt", ["a"] * 257),
        ("suffix", "end"),
        ("priority", 0.5),
        ("priority", "high"),
        ("logprobs", 21),
        ("logprobs", True),
        ("best_of", 3),
        ("messages", [USER]),
        ("max_completion_tokens", 3),
    ],
)
def test_a_bad_completion_field_is_named(field: str, value: object) -> None:
    body = json.dumps({"prompt": "Hi"} | {field: value}).encode()
    assert refused(body, CompletionRequest).param == field


def test_fields_that_contradict_each_other() -> None:
    body = {"messages": [USER], "max_tokens": 1, "max_completion_tokens": 2}
    assert refused(json.dumps(body).encode()).param == "max_tokens"
    body = {"prompt": "Hi", "echo": True, "logprobs": 0}
    assert refused(json.dumps(body).encode(), CompletionRequest).param == "echo"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe{}",
        b'{"messages": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"{'a': 1}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"messages": [{"role": "user", "content": "x"}], "metadata": NaN}',
        b'{"n": ' + b"1" * 5000 + b"}",
        '{"messages": []}'.encode("utf-16"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    assert refused(body).param is None


def test_a_message_that_quotes_the_input_stays_short() -> None:
    error = refused(json.dumps({"messages": [USER], "x" * 100_000: 1}).encode())
    assert len(error.message) <= 500
    assert error.param is not None
    assert len(error.param) <= 500


def test_prompt_shapes() -> None:
    assert completion(prompt="").prompt == ("",)
    assert completion(prompt=["a", ""]).prompt == ("a", "")
    assert completion(prompt=[1, 2]).prompt == ((1, 2),)
    assert completion(prompt=[[1, 2], [3]]).prompt == ((1, 2), (3,))


def test_what_asks_for_nothing_is_accepted() -> None:
    assert chat(tools=None, seed=None, stop=None, stream_options=None).stop == ()
    assert chat(response_format={"type": "text"}, modalities=["text"], tool_choice="none").n == 1
    assert chat(user="u", metadata={"a": [1]}, store=True, service_tier="auto").n == 1
    assert chat(parallel_tool_calls=False, prompt_cache_key="k", safety_identifier="s").n == 1
    assert completion(best_of=2, n=2, suffix="").n == 2
    assert chat(max_tokens=3, max_completion_tokens=3).max_tokens == 3


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    message = {"role": "user", "content": parts, "name": "Ann", "refusal": None}
    assert chat(messages=[message]).messages[0].content == "one\ntwo"


def test_defaults() -> None:
    body = chat()
    assert (body.temperature, body.top_p, body.top_k, body.n) == (1.0, 1.0, 0, 1)
    assert body.seed is None
    assert body.priority == completion().priority == 0
    assert not body.stream


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), st.booleans())
def test_any_json_is_accepted_or_refused_as_a_bad_request(
    fields: dict[str, Any], good_base: bool
) -> None:
    base: dict[str, Any] = {"messages": [USER], "prompt": [1]} if good_base else {}
    body = json.dumps(base | fields).encode()
    for schema, drop in ((ChatRequest, "prompt"), (CompletionRequest, "messages")):
        for text in (body, json.dumps({k: v for k, v in (base | fields).items() if k != drop})):
            data = text if isinstance(text, bytes) else text.encode()
            try:
                parse_request(data, schema)
            except BadRequest as error:
                json.dumps(error.body()).encode()


@given(st.binary(max_size=60))
def test_any_bytes_are_refused(body: bytes) -> None:
    refused(body)
