"""POST /v1/embeddings and /classify, with the official client and as plain HTTP."""

from __future__ import annotations

import base64
import struct
from typing import Any

import openai
import pytest

from actors.http.doors import Doors, KeyDigests, digest
from actors.http.errors import Unavailable
from actors.http.openai_schema import INT64
from actors.http.rate_limits import RateLimits
from actors.http.request_fields import MAX_INPUTS
from actors.http.serving_state import ServingState
from actors.http.waiting_line import LineLimits, WaitingLine
from actors.messages import GenerateRequest, TokenEvent
from actors.metrics.metric_table import FINISHED, GENERATION_TOKENS, PROMPT_TOKENS
from actors.pipeline.pipeline_choice import fits
from model.head import ModelHead
from tests.actors.http_serving import (
    MAX_MODEL_LEN,
    MODEL,
    Script,
    Step,
    chat_body,
    gives,
    ids_of,
    make_state,
    official,
    serving,
    source_of,
    tokenizer,
)

EMBEDS = ModelHead("MixtralModel")
CLASSIFIES = ModelHead("MistralForSequenceClassification", ("sad", "glad"), pad_token_id=7)
THIRD = struct.unpack("<f", struct.pack("<f", 1 / 3))[0]  # what float32 knows of it


def by_length(request: GenerateRequest) -> list[Step]:
    return gives([1 / 3, len(request.prompt_token_ids)])(request)


def embedding_state(script: Script = by_length, **changes: Any) -> ServingState:
    return make_state(script, **{"head": EMBEDS} | changes)


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_official_client_gets_embeddings(encoding: Any) -> None:
    state = embedding_state()
    asked = {} if encoding is None else {"encoding_format": encoding}
    with serving(state) as http, official(http.base_url) as client:
        answer = client.embeddings.create(model=MODEL, input=["one", "", "a wind rose"], **asked)
    lengths = [1 + len(ids_of(text)) for text in ("one", "", "a wind rose")]
    assert (answer.object, answer.model) == ("list", MODEL)
    assert [item.index for item in answer.data] == [0, 1, 2]
    for item, length in zip(answer.data, lengths, strict=True):
        vector: Any = item.embedding
        if encoding == "base64":
            vector = list(struct.unpack("<2f", base64.b64decode(vector)))
        assert vector == [THIRD, length]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(lengths)
    assert {request.pooling for request in source_of(state).requests} == {"last"}


def test_inputs_are_texts_or_token_ids_one_or_many() -> None:
    state = embedding_state(pooling="mean", add_eos=True)
    bos, eos, hi = tokenizer().bos_id, tokenizer().eos_id, ids_of("Hi")
    with serving(state) as http:
        for given in ("Hi", ["Hi", "Hi"], [5, 6], [[5], [6, 7]]):
            answer = http.post("/v1/embeddings", json={"input": given, "priority": -3})
            assert answer.status_code == 200, answer.text
        http.post("/v1/embeddings", json={"input": "Hi", "add_special_tokens": False})
        longest = http.post("/v1/embeddings", json={"input": [5] * MAX_MODEL_LEN})
    assert longest.status_code == 200
    got = [request.prompt_token_ids for request in source_of(state).requests]
    whole = (bos, *hi, eos)
    assert got == [whole, whole, whole, (5, 6), (5,), (6, 7), tuple(hi), (5,) * MAX_MODEL_LEN]
    assert {request.pooling for request in source_of(state).requests} == {"mean"}
    assert all(fits(one, "w-a", MAX_MODEL_LEN) for one in source_of(state).requests)
    assert [request.priority for request in source_of(state).requests] == [-3] * 6 + [0] * 2


def test_classes_as_in_vllm() -> None:
    def script(request: GenerateRequest) -> list[Step]:
        return gives([0.25, 0.75] if len(request.prompt_token_ids) > 2 else [0.5, 0.5])(request)

    state = make_state(script, head=CLASSIFIES)
    with serving(state) as http:
        answer = http.post("/classify", json={"model": MODEL, "input": [[1, 5, 6, 7, 7], [7, 7]]})
    body = answer.json()
    assert body.pop("id").startswith("classify-")
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "object": "list",
        "model": MODEL,
        "data": [
            {"index": 0, "label": "glad", "probs": [0.25, 0.75], "num_classes": 2},
            {"index": 1, "label": "sad", "probs": [0.5, 0.5], "num_classes": 2},
        ],
        "usage": {"prompt_tokens": 4, "total_tokens": 4, "completion_tokens": 0},
    }
    # Padding behind the last token is not looked at, as in transformers.
    assert [r.prompt_token_ids for r in source_of(state).requests] == [(1, 5, 6), (7,)]


@pytest.mark.parametrize(
    "head, path, what",
    [
        (EMBEDS, "/v1/chat/completions", "a MixtralModel, which turns texts into vectors"),
        (EMBEDS, "/v1/completions", "a MixtralModel, which"),
        (EMBEDS, "/classify", "a MixtralModel, which"),
        (CLASSIFIES, "/v1/chat/completions", "a MistralForSequenceClassification, which classif"),
        (CLASSIFIES, "/v1/embeddings", "a MistralForSequenceClassification, which"),
        (ModelHead(), "/v1/embeddings", "a MixtralForCausalLM, which generates text"),
        (ModelHead(), "/classify", "a MixtralForCausalLM, which generates text"),
    ],
)
def test_what_a_model_cannot_do_is_refused_by_what_it_is(
    head: ModelHead, path: str, what: str
) -> None:
    state = make_state(head=head)
    with serving(state) as http:
        answer = http.post(path, json=chat_body() if "chat" in path else {"input": "x"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_model")
    assert what in error["message"] and path in error["message"]
    assert not source_of(state).requests


@pytest.mark.parametrize(
    "fields, param",
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", [1]]}, "input"),
        ({"input": [1, -1]}, "input"),
        ({"input": [32000]}, "input"),
        ({"input": [1] * (MAX_MODEL_LEN + 1)}, "input"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
        ({"input": "", "add_special_tokens": False}, "input"),
        ({"input": "a", "dimensions": 2}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "priority": INT64}, "priority"),
        ({"input": "a", "max_tokens": 2}, "max_tokens"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], param: str) -> None:
    state = embedding_state()
    with serving(state) as http:
        answer = http.post("/v1/embeddings", json=fields)
        other = http.post("/v1/embeddings", json={"input": "a", "model": "other"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
    assert not source_of(state).requests


def test_keys_rates_and_the_line_hold_for_pooling_too() -> None:
    state = embedding_state(
        doors=Doors(KeyDigests((digest("secret"),))),
        rates=RateLimits(requests_per_minute=2, tokens_per_minute=6),
    )
    with serving(state) as http:
        for path in ("/v1/embeddings", "/classify"):
            assert http.post(path, json={"input": [5, 6]}).status_code == 401
        http.headers["authorization"] = "Bearer secret"
        first, too_many_tokens, too_many_requests = (
            http.post("/v1/embeddings", json={"input": given})
            for given in ([[5, 6], [7]], [[5, 6], [7, 8]], [5])
        )
    assert first.status_code == 200
    assert "--max-tokens-per-minute" in too_many_tokens.text
    assert "--max-requests-per-minute" in too_many_requests.text
    assert too_many_requests.status_code == too_many_tokens.status_code == 429
    full = embedding_state(line=WaitingLine(LineLimits(1)))
    with full.line.places([3], 0.0), serving(full) as http:
        assert http.post("/v1/embeddings", json={"input": "a"}).status_code == 429
    assert full.line.sequences == 0


def test_metrics_count_prompts_and_ends_and_no_first_tokens() -> None:
    state = embedding_state()
    with serving(state) as http:
        http.post("/v1/embeddings", json={"input": [[5, 6], [7]]})
    counts = state.metrics.counts()
    assert counts[PROMPT_TOKENS.name,] == (3.0,)
    assert counts[GENERATION_TOKENS.name,] == (0.0,)
    assert counts[FINISHED.name, "stop"] == (2.0,)


def test_one_that_fails_ends_the_others() -> None:
    def script(request: GenerateRequest) -> list[Step]:
        return [Unavailable("gone")] if request.prompt_token_ids == (7,) else [None]

    state = embedding_state(script)
    with serving(state) as http:
        answer = http.post("/v1/embeddings", json={"input": [[5], [6], [7]]})
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "gone")
    assert len(source_of(state).closed) == 2


def test_a_deadline_and_an_abort_are_told() -> None:
    state = embedding_state(lambda _request: [None], request_timeout_s=0.05)
    with serving(state) as http:
        late = http.post("/v1/embeddings", json={"input": [[5], [6]]})
        source_of(state).script = lambda r: [TokenEvent(r.request_id, (), None, "abort")]
        aborted = http.post("/v1/embeddings", json={"input": [5]})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert len(source_of(state).closed) == 2
    assert aborted.status_code == 503


def test_official_client_is_told_what_is_wrong() -> None:
    refusal = pytest.raises(openai.BadRequestError, match="a MixtralForCausalLM, which generates")
    with serving(make_state()) as http, official(http.base_url) as client, refusal:
        client.embeddings.create(model=MODEL, input="x")
