"""The colocated engine against transformers, token by token, on checkpoints of many shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.ranks.engine_build import BuiltEngine, colocated_engine
from model.kv_cache import KVCache
from model.step_batch import Chunk, build_batch
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import (
    MAX_MODEL_LEN,
    PROMPT_LENGTHS,
    Generated,
    assert_same,
    generate,
    greedy_requests,
    load_reference,
    make_prompts,
    run_engine,
    tiny_plan,
)

CPU = torch.device("cpu")
MAX_TOKENS = 12

SHAPES: dict[str, dict[str, Any]] = {
    "default": {},
    "v4-tied-top3-of-5": {"config_style": "v4", "tie": True, "experts": 5, "top_k": 3},
    "wide-heads-top1": {"heads": 6, "kv_heads": 2, "head_dim": 32, "top_k": 1, "seed": 3},
    "window-shorter-than-prompts": {"sliding_window": 7, "shards": 3, "rope_theta": 1e4},
    "dense": {"experts": 0, "rope_theta": 1e6},
    "dense-v4-tied-window": {
        "experts": 0, "config_style": "v4", "tie": True, "sliding_window": 9, "rope_theta": 1e4,
        "shards": 2,
    },
    "v4-8-experts-one-kv-head": {
        "config_style": "v4", "experts": 8, "layers": 3, "kv_heads": 1, "hidden": 48, "shards": 2,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    directory: Path
    prompts: list[tuple[int, ...]]
    reference: list[Generated]

    def engine(self, **settings: Any) -> BuiltEngine:
        return colocated_engine(tiny_plan(self.directory, **settings), CPU)


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    @cache
    def make(name: str) -> Case:
        directory = make_checkpoint(tmp_path_factory.mktemp(name), **SHAPES[name])
        prompts = make_prompts(512)
        model = load_reference(directory)
        return Case(directory, prompts, [generate(model, p, MAX_TOKENS) for p in prompts])

    return make


@pytest.fixture(params=SHAPES)
def case(request: pytest.FixtureRequest, case_of: Callable[[str], Case]) -> Case:
    return case_of(request.param)


def test_the_reference_is_worth_comparing_to(case: Case) -> None:
    lengths = [len(one.token_ids) for one in case.reference]
    assert max(lengths) == MAX_TOKENS
    assert len({one.token_ids for one in case.reference}) == len(PROMPT_LENGTHS)
    assert len({token for one in case.reference for token in one.token_ids}) > 20


def test_each_alone(case: Case) -> None:
    engine = case.engine().engine
    got = [run_engine(engine, [r])[0] for r in greedy_requests(case.prompts, MAX_TOKENS)]
    assert_same(got, case.reference)


def test_all_at_once_with_one_chunk_a_prompt(case: Case) -> None:
    built = case.engine()
    requests = greedy_requests(case.prompts, MAX_TOKENS)
    assert_same(run_engine(built.engine, requests), case.reference)
    stats = built.engine.stats()
    assert stats.num_preemptions == 0
    ran = sum(len(p) + len(r.token_ids) - 1 for p, r in zip(case.prompts, case.reference))
    assert stats.num_rows == ran
    assert_load_adds_up(built, case)


def test_all_at_once_cut_into_chunks_and_preempted(case: Case) -> None:
    built = case.engine(num_blocks=MAX_MODEL_LEN // 4 + 1, max_num_batched_tokens=16)
    requests = greedy_requests(case.prompts, MAX_TOKENS)
    assert_same(run_engine(built.engine, requests), case.reference)
    if tiny_plan(case.directory).model.sliding_window is None:  # with one, less is enough
        assert built.engine.stats().num_preemptions > 0
    assert_load_adds_up(built, case)


def assert_load_adds_up(built: BuiltEngine, case: Case) -> None:
    model = tiny_plan(case.directory).model
    if model.is_dense:
        assert built.load is None
        return
    assert built.load is not None
    totals = built.load.totals()
    assert [len(row) for row in totals] == [model.num_experts] * model.num_layers
    assert [sum(row) for row in totals] == [
        model.top_k * built.engine.stats().num_rows
    ] * model.num_layers


@pytest.mark.parametrize("block_size", [1, 16, 128])
@pytest.mark.parametrize("max_num_seqs", [1, 3])
def test_limits_change_nothing_but_speed(
    case_of: Callable[[str], Case], block_size: int, max_num_seqs: int
) -> None:
    case = case_of("default")
    engine = case.engine(
        block_size=block_size, max_num_seqs=max_num_seqs, max_num_batched_tokens=7
    ).engine
    requests = greedy_requests(case.prompts[:8], MAX_TOKENS)
    assert_same(run_engine(engine, requests), case.reference[:8])


@pytest.mark.parametrize("known", [1, 5, MAX_TOKENS - 1])
def test_a_resubmitted_request_goes_on_where_it_was(case: Case, known: int) -> None:
    engine = case.engine(max_num_batched_tokens=16).engine
    requests = [
        replace(request, output_token_ids=reference.token_ids[:known])
        for request, reference in zip(greedy_requests(case.prompts, MAX_TOKENS), case.reference)
        if len(reference.token_ids) == MAX_TOKENS
    ]
    want = [
        Generated(one.token_ids[known:], one.logprobs[known:])
        for one in case.reference
        if len(one.token_ids) == MAX_TOKENS
    ]
    assert len(want) > 8
    assert_same(run_engine(engine, requests), want)


def test_a_complete_resubmission_only_ends(case_of: Callable[[str], Case]) -> None:
    case = case_of("default")
    done = next(one for one in case.reference if len(one.token_ids) == MAX_TOKENS)
    request = greedy_requests([case.prompts[case.reference.index(done)]], MAX_TOKENS)[0]
    engine = case.engine().engine
    got = run_engine(engine, [replace(request, output_token_ids=done.token_ids)])
    assert got == [Generated((), (), "length")]
    assert engine.stats().num_steps == 0


def test_a_seed_draws_the_same_alone_in_a_batch_and_preempted(
    case_of: Callable[[str], Case],
) -> None:
    case = case_of("default")
    settings: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 20, "min_p": 0.01},
        {"temperature": 0.9, "presence_penalty": 0.5, "repetition_penalty": 1.2},
    ]
    requests = [
        replace(one, params=replace(one.params, seed=i, **settings[i % 4]))
        for i, one in enumerate(greedy_requests(case.prompts, 16))
    ]
    roomy = case.engine().engine
    alone = [run_engine(roomy, [request])[0] for request in requests]
    assert_same(run_engine(roomy, requests), alone)
    tight = case.engine(num_blocks=MAX_MODEL_LEN // 4, max_num_batched_tokens=16).engine
    assert_same(run_engine(tight, requests), alone)
    assert tight.stats().num_preemptions > 0
    resumed = [replace(r, output_token_ids=one.token_ids[:7]) for r, one in zip(requests, alone)]
    rest = [Generated(one.token_ids[7:], one.logprobs[7:]) for one in alone]
    assert all(one.token_ids for one in rest)
    assert_same(run_engine(roomy, resumed), rest)
    other_seed = [replace(r, params=replace(r.params, seed=r.params.seed + 99)) for r in requests]
    others = run_engine(roomy, other_seed)
    assert sum(a.token_ids != b.token_ids for a, b in zip(others, alone)) > 12


def test_an_eos_ends_a_sequence_unless_ignored(case_of: Callable[[str], Case]) -> None:
    case = case_of("default")
    index = next(i for i, one in enumerate(case.reference) if len(set(one.token_ids)) > 6)
    prompt, reference = case.prompts[index], case.reference[index]
    stop = reference.token_ids[5]
    first = reference.token_ids.index(stop)
    plan = tiny_plan(case.directory)
    plan = replace(plan, limits=replace(plan.limits, eos_token_ids=frozenset({stop})))
    engine = colocated_engine(plan, CPU).engine
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({}, first + 1, "stop"),
        ({"ignore_eos": True}, MAX_TOKENS, "length"),
        ({"ignore_eos": True, "stop_token_ids": (stop,)}, first + 1, "stop"),
    ]
    for params, length, reason in cases:
        got = run_engine(engine, greedy_requests([prompt], MAX_TOKENS, **params))[0]
        assert (got.token_ids, got.finish_reason) == (reference.token_ids[:length], reason)


def test_a_request_that_can_never_run_is_refused(case_of: Callable[[str], Case]) -> None:
    engine = case_of("default").engine().engine
    for prompt in [(), (1,) * MAX_MODEL_LEN]:
        with pytest.raises(ValueError, match="max_model_len"):
            engine.add(greedy_requests([prompt], 1)[0])
    assert not engine.scheduler.has_work


@pytest.mark.parametrize("top_k", [1, 2, 0])
def test_bfloat16_is_as_close_to_float32_as_transformers_is(tmp_path: Path, top_k: int) -> None:
    # Where two experts' logits nearly tie, bf16 picks another one than fp32, in transformers as
    # here but not for the same tokens: several models, and quantiles below that one in a hundred.
    errors = []
    for seed in range(3):
        directory = make_checkpoint(
            tmp_path / str(seed),
            dtype="bfloat16",
            experts=4 if top_k else 0,
            top_k=top_k,
            hidden=96,
            seed=seed,
        )
        prompt = make_prompts(512, [384])[0]
        with torch.inference_mode():
            exact = load_reference(directory)(torch.tensor([prompt])).logits[0]
            theirs = load_reference(directory, torch.bfloat16)(torch.tensor([prompt])).logits[0]
            ours = teacher_forced(directory, prompt, [5, 123, 256])
        errors.append(torch.stack([(x.float() - exact).abs().mean(-1) for x in (ours, theirs)]))
    quantiles = torch.tensor([0.1, 0.5, 0.75, 0.9])
    mine, reference = torch.cat(errors, -1).quantile(quantiles, dim=-1).T
    assert (mine > 0).all()
    assert (mine <= 1.25 * reference).all(), f"{mine}, transformers' {reference}"


def teacher_forced(directory: Path, prompt: tuple[int, ...], sizes: list[int]) -> torch.Tensor:
    """Logits of all positions in the checkpoint's dtype, [T, V]; the prompt runs in chunks."""
    plan = tiny_plan(directory, dtype="bfloat16", max_model_len=384)
    decoder = colocated_engine(plan, CPU).engine._decoder
    kv = KVCache(plan.model, 96, 4, plan.torch_dtype, CPU)
    logits, start = [], 0
    for size in sizes:
        chunk = Chunk(prompt[start : start + size], start, list(range(96)), True)
        batch = build_batch([], [chunk], 4, CPU)
        logits.append(decoder.forward(replace(batch, sample_rows_C=torch.arange(size)), kv))
        start += size
    assert start == len(prompt)
    return torch.cat(logits)
