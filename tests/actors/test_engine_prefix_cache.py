"""Real models with and without prefix caching: the same answers, fewer rows by just the hits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.messages import GenerateRequest, TokenEvent
from actors.ranks.engine import Engine
from actors.ranks.engine_build import colocated_engine
from model.sampling_params import SamplingParams
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import (
    MAX_MODEL_LEN,
    Generated,
    assert_same,
    collect,
    greedy_requests,
    make_prompts,
    run_engine,
    tiny_plan,
)

CPU = torch.device("cpu")
MAX_TOKENS = 10
SHAPES: dict[str, dict[str, Any]] = {
    "default": {},
    "window-shorter-than-prompts": {"sliding_window": 7, "top_k": 1},
}


@pytest.fixture(scope="module", params=SHAPES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), **SHAPES[request.param])


def engine_of(directory: Path, caching: bool, **settings: Any) -> Engine:
    plan = tiny_plan(directory, enable_prefix_caching=caching, **settings)
    return colocated_engine(plan, CPU).engine


def shared_prompts() -> list[tuple[int, ...]]:
    """Two long prompts; cuts of them, alone and with other ends; and one of them twice."""
    first, second, ends = make_prompts(512, [90, 61, 40])
    cuts = [one[:n] for one in (first, second) for n in (1, 4, 5, 33, 60)]
    forks = [one[:n] + ends[n // 2 :] for one in (first, second) for n in (8, 15, 44)]
    return [first, second, *cuts, *forks, first, second]


def in_turn(engine: Engine, requests: list[GenerateRequest]) -> list[Generated]:
    return [run_engine(engine, [request])[0] for request in requests]


def test_one_after_another_saves_just_the_hits(directory: Path) -> None:
    requests = greedy_requests(shared_prompts(), MAX_TOKENS, logprobs=2)
    plain, caching = (engine_of(directory, enabled) for enabled in (False, True))
    want = in_turn(plain, requests)
    assert len({one.token_ids for one in want}) > 10
    assert_same(in_turn(caching, requests), want)
    with_cache, without = caching.stats(), plain.stats()
    assert (without.prefix_cache_queries, without.prefix_cache_hits) == (0, 0)
    assert with_cache.prefix_cache_queries == sum(len(r.prompt_token_ids) for r in requests)
    # By hand: each prompt's longest common beginning with an earlier one, in blocks of four.
    saved = sum(longest_known(requests, want, i) for i in range(len(requests)))
    assert with_cache.prefix_cache_hits == saved > 400
    assert without.num_rows - with_cache.num_rows == saved


def longest_known(requests: list[GenerateRequest], answers: list[Generated], index: int) -> int:
    prompt = requests[index].prompt_token_ids
    longest = 0
    for request, answer in zip(requests[:index], answers):
        computed = (request.prompt_token_ids + answer.token_ids)[:-1]
        for n in range(0, min(len(prompt) - 1, len(computed)) + 1, 4):
            if prompt[:n] == computed[:n]:
                longest = max(longest, n)
    return longest


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 7, "max_num_seqs": 3},
        {"num_blocks": MAX_MODEL_LEN // 4 + 1, "max_num_batched_tokens": 16},
        {"block_size": 1, "max_num_batched_tokens": 16},
    ],
)
def test_all_at_once_twice(directory: Path, settings: dict[str, Any]) -> None:
    requests = greedy_requests(shared_prompts(), MAX_TOKENS)
    want = run_engine(engine_of(directory, False, **settings), requests)
    engine = engine_of(directory, True, **settings)
    for _ in range(2):
        assert_same(run_engine(engine, requests), want)
        engine.scheduler.check_integrity()
    assert engine.stats().prefix_cache_hits > 0
    windowed = engine.scheduler.limits.sliding_window is not None  # less is enough then
    assert (engine.stats().num_preemptions > 0) == ("num_blocks" in settings and not windowed)


def test_conversations_and_resubmissions_go_on_from_what_is_there(directory: Path) -> None:
    params: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95}
    requests = greedy_requests(shared_prompts()[:6], 24, **params)
    plain, engine = engine_of(directory, False), engine_of(directory, True)
    want = in_turn(plain, requests)
    assert_same(in_turn(engine, requests), want)
    hits = engine.stats().prefix_cache_hits
    for known in (5, 17):
        again = [
            replace(one, output_token_ids=answer.token_ids[:known])
            for one, answer in zip(requests, want)
        ]
        rest = [Generated(one.token_ids[known:], one.logprobs[known:]) for one in want]
        assert_same(in_turn(engine, again), rest)
    turns = [
        replace(one, prompt_token_ids=one.prompt_token_ids[:90] + answer.token_ids + (5, 6))
        for one, answer in zip(requests, want)
    ]
    assert_same(in_turn(engine, turns), in_turn(plain, turns))
    lengths = [len(one.prompt_token_ids) for one in requests]
    least = sum((n + known - 1) // 4 * 4 for n in lengths for known in (5, 17, 24))
    assert engine.stats().prefix_cache_hits - hits >= least - 4 * len(turns)


def test_the_first_event_says_how_much_was_cached(directory: Path) -> None:
    engine = engine_of(directory, True)
    prompt = make_prompts(512, [30])[0]
    requests = [
        GenerateRequest(name, "here", prompt, SamplingParams(3, seed=0, ignore_eos=True))
        for name in "ab"
    ]
    told = []
    for request in requests:
        events: list[TokenEvent] = []
        engine.run([request], events.append)
        assert len(collect(events, [request])[0].token_ids) == 3
        told.append([event.num_cached_tokens for event in events])
    assert told == [[0, 0, 0], [28, 0, 0]]
