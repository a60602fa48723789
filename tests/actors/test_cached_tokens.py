"""What clients are told of cached prompt tokens, in OpenAI's `usage.prompt_tokens_details`."""

from __future__ import annotations

from typing import Any

import pytest

from actors.messages import GenerateRequest, TokenEvent
from tests.actors.http_serving import (
    MODEL,
    Script,
    Step,
    chat_body,
    make_state,
    official,
    serving,
    sse_events,
)

WORD = 22557


def cached(count: int) -> Script:
    """Three tokens a choice; the first event tells `count`, later ones others."""

    def script(request: GenerateRequest) -> list[Step]:
        name = request.request_id
        return [
            TokenEvent(name, (WORD, WORD), num_cached_tokens=count),
            # As after the death of an attention actor: the next attempt has all but the last block.
            TokenEvent(name, (WORD,), num_cached_tokens=1000),
            TokenEvent(name, (), None, "length", num_cached_tokens=2000),
        ]

    return script


def usage_of(path: str, script: Script, body: dict[str, Any], stream: bool) -> dict[str, Any]:
    if stream:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    with serving(make_state(script)) as http:
        answer = http.post(f"/v1/{path}", json=body)
    if not stream:
        usage: dict[str, Any] = answer.json()["usage"]
        return usage
    *events, last, done = sse_events(answer)
    assert done == "DONE" and all(event["usage"] is None for event in events)
    usage = last["usage"]
    return usage


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", [None, "never to be seen"])
def test_the_first_attempts_count_is_told(stream: bool, stop: str | None) -> None:
    usage = usage_of("chat/completions", cached(5), chat_body(stop=stop), stream)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 5}
    assert usage["completion_tokens"] == 3
    assert usage["total_tokens"] == usage["prompt_tokens"] + 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_counts_once_for_all_its_choices(stream: bool) -> None:
    counts = {((1, 5), True): 16, ((1, 5), False): 100, ((1, 6, 7), True): 3}

    def script(request: GenerateRequest) -> list[Step]:
        is_first = request.params.seed == 9  # the other choices' seeds are drawn from it
        return cached(counts.get((request.prompt_token_ids, is_first), 200))(request)

    body = {"prompt": [[1, 5], [1, 6, 7]], "n": 2, "seed": 9}
    usage = usage_of("completions", script, body, stream)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 19}
    assert usage["prompt_tokens"] == 5


def test_an_official_client_reads_it() -> None:
    with serving(make_state(cached(12))) as http, official(http.base_url) as client:
        answer = client.completions.create(model=MODEL, prompt="Hello")
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 12


def test_no_hit_is_nothing_cached() -> None:
    usage = usage_of("completions", cached(0), {"prompt": "x"}, False)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
