"""Texts of one request are tokenized on the event loop only where they are short together."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from actors.http.completion_plan import LONG_TEXT_CHARS, plan_completion
from actors.http.openai_schema import CompletionRequest, parse_request
from actors.http.pooling_plan import plan_pooling
from actors.http.pooling_schema import EmbeddingRequest
from tests.actors.http_serving import make_state, tokenizer

SHORT = "The quick brown fox jumps over the lazy dog. " * 4
MANY = LONG_TEXT_CHARS // len(SHORT) + 1  # one of which more is too long


def planned(texts: list[str], pooled: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, bool]:
    """Token ids of each text, and whether all were made in the thread of the event loop."""
    threads: set[int] = set()
    encode = tokenizer().encode

    def noted(*args: Any, **options: Any) -> list[int]:
        threads.add(threading.get_ident())
        return encode(*args, **options)

    monkeypatch.setattr(tokenizer(), "encode", noted)
    if pooled:
        state = make_state(add_eos=True)
        body = parse_request(json.dumps({"input": texts}).encode(), EmbeddingRequest)
        requests = asyncio.run(plan_pooling(body, state, "last")).requests
    else:
        completion = parse_request(json.dumps({"prompt": texts}).encode(), CompletionRequest)
        plan = asyncio.run(plan_completion(completion, make_state(), "id"))
        requests = tuple(choice.request for choice in plan.choices)
    monkeypatch.undo()
    return [list(one.prompt_token_ids) for one in requests], threads == {threading.get_ident()}


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("count", "on_the_loop"), [(1, True), (MANY - 1, True), (MANY, False)])
def test_many_short_texts_do_not_hold_up_the_event_loop(
    count: int, on_the_loop: bool, pooled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = planned([SHORT] * count, pooled, monkeypatch)
    ids = tokenizer().encode(SHORT, add_bos=True) + ([tokenizer().eos_id] if pooled else [])
    assert got == ([ids] * count, on_the_loop)
