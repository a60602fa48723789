"""Far past a sliding window: transformers' tokens, from a KV cache that holds the window alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.messages import GenerateRequest, TokenEvent
from actors.ranks.engine import Engine
from actors.ranks.engine_build import colocated_engine
from model.config import ModelConfig
from model.kv_size import blocks_in_sight
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import (
    Generated,
    assert_same,
    collect,
    generate,
    greedy_requests,
    load_reference,
    make_prompts,
    run_engine,
    tiny_plan,
)

CPU = torch.device("cpu")
BLOCK = 4
MAX_LEN = 200
MAX_TOKENS = 64
LENGTHS = (90, 1, 33, 16, 9, 120, 8, 47)

SHAPES: dict[str, dict[str, Any]] = {
    "mistral": {"experts": 0, "sliding_window": 10, "rope_theta": 1e4},
    "mixtral": {"sliding_window": 8, "layers": 3},
    "mixtral, a window of blocks and a bit": {"sliding_window": 29, "seed": 4},
}


class Case:
    """A checkpoint with a window, and what transformers makes of some prompts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        window = ModelConfig.from_dir(directory).sliding_window
        assert window is not None
        self.window = window
        self.prompts = make_prompts(512, LENGTHS)
        model = load_reference(directory)
        self.reference = [generate(model, prompt, MAX_TOKENS) for prompt in self.prompts]

    def engine(self, **settings: Any) -> Engine:
        settings = {"max_model_len": MAX_LEN, "enable_prefix_caching": False, **settings}
        return colocated_engine(tiny_plan(self.directory, **settings), CPU).engine

    @property
    def requests(self) -> list[GenerateRequest]:
        return greedy_requests(self.prompts, MAX_TOKENS)


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    @cache
    def make(name: str) -> Case:
        return Case(make_checkpoint(tmp_path_factory.mktemp("window"), **SHAPES[name]))

    return make


@pytest.fixture(params=SHAPES)
def case(request: pytest.FixtureRequest, case_of: Callable[[str], Case]) -> Case:
    return case_of(request.param)


def run_watched(
    engine: Engine,
    requests: list[GenerateRequest],
    window: int,
    late: Sequence[GenerateRequest] = (),
) -> list[Generated]:
    """Run them together, some from step 40 on. What nobody holds is NaN, and blocks are counted."""
    cache, scheduler = engine._cache, engine.scheduler
    events: list[TokenEvent] = []
    for request in requests:
        assert engine.add(request) == []
    held: set[int] = set()
    while scheduler.has_work:
        if engine.stats().num_steps == 40:
            for request in late:
                engine.add(request)
        plan = engine.plan_step()
        running = scheduler._admission.running
        now = {block_id for one in running for block_id in one.block_ids}
        blocks = cache._kv_LSJd.view(cache._kv_LSJd.shape[0], cache.num_blocks, -1)
        for block_id in set(range(cache.num_blocks)) - held:
            blocks[:, block_id] = 0.0 if block_id in now else torch.nan
        for chunk in plan.decodes:
            assert len(chunk.sequence.block_ids) <= window / BLOCK + 2
        for chunk in plan.prefills:
            own = -(-chunk.num_tokens // BLOCK)
            assert len(chunk.sequence.block_ids) <= window / BLOCK + 2 + own
        events += engine.run_step(plan)
        held = {block_id for one in running for block_id in one.block_ids}
        assert all(len(one.block_ids) <= window / BLOCK + 2 for one in running)
        assert scheduler.pool.num_free == cache.num_blocks - len(
            {block_id for one in scheduler._admission.running for block_id in one.block_ids}
        )
    return collect(events, [*requests, *late])


def test_the_window_matters_to_the_reference(case: Case, tmp_path: Path) -> None:
    """Without it the same weights say something else: so these tokens are worth comparing to."""
    model = load_reference(case.directory)
    model.config.sliding_window = None
    for index in (0, 5):
        free = generate(model, case.prompts[index], MAX_TOKENS)
        assert free.token_ids != case.reference[index].token_ids
    assert max(len(one.token_ids) for one in case.reference) == MAX_TOKENS


def test_whole_prompts(case: Case) -> None:
    engine = case.engine(num_blocks=600)
    assert_same(run_watched(engine, case.requests, case.window), case.reference)
    assert engine.stats().num_preemptions == 0


def test_prompts_in_chunks_alone_in_the_smallest_pool(case: Case) -> None:
    smallest = blocks_in_sight(case.window, 1, BLOCK)
    assert smallest * BLOCK < MAX_LEN / 4
    engine = case.engine(num_blocks=smallest, max_num_batched_tokens=16)
    for request, want in zip(case.requests, case.reference, strict=True):
        assert_same(run_watched(engine, [request], case.window), [want])
    with pytest.raises(ValueError, match="raise the one or lower the other"):
        case.engine(num_blocks=smallest - 1)


def test_prompts_in_chunks_preempted_by_more_important_ones(case: Case) -> None:
    # What a sequence needs is known when it is admitted: nothing less makes it give way.
    smallest = blocks_in_sight(case.window, 1, BLOCK)
    engine = case.engine(num_blocks=2 * smallest, max_num_batched_tokens=16)
    requests = [replace(one, priority=i < 4) for i, one in enumerate(case.requests)]
    got = run_watched(engine, requests[:4], case.window, late=requests[4:])
    assert_same(got, case.reference)
    assert engine.stats().num_preemptions > 0


def test_a_prefix_is_found_by_the_blocks_in_its_window_alone(case: Case) -> None:
    engine = case.engine(num_blocks=600, enable_prefix_caching=True)
    assert_same(run_engine(engine, case.requests), case.reference)
    computed = engine.stats().num_rows
    # The blocks behind the window of the longest prompt's end are used for something else.
    prompt = case.prompts[5]
    sequence_keys = engine.scheduler
    waiting = replace(case.requests[5], request_id="again")
    assert engine.add(waiting) == []
    held = sequence_keys.prefixes.find(sequence_keys._by_id["again"])
    assert held.first_block == max(0, 116 - case.window + 1) // BLOCK > 0
    assert held.first_block + len(held.block_ids) == 116 // BLOCK
    keys = sequence_keys._by_id["again"].block_keys[: held.first_block]
    pool = engine.scheduler.pool
    pool.forget([block_id for key in keys if (block_id := pool.find(key)) is not None])
    engine.abort("again")
    again = replace(case.requests[5], request_id="r0")
    assert_same(run_engine(engine, [again]), [case.reference[5]])
    rows = engine.stats().num_rows - computed
    assert rows == len(prompt) - 116 + len(case.reference[5].token_ids) - 1


def test_a_step_that_is_interrupted_runs_again(case_of: Callable[[str], Case]) -> None:
    """What it was to see is freed only once it is over."""
    case = case_of("mixtral")
    engine = case.engine(num_blocks=600, max_num_batched_tokens=16)
    events: list[TokenEvent] = []
    forward = engine._decoder.forward
    for request in case.requests:
        engine.add(request)

    def failing(*arguments: Any) -> torch.Tensor:
        forward(*arguments)
        raise RuntimeError("a rank that holds experts is gone")

    while engine.scheduler.has_work:
        plan = engine.plan_step()
        engine._decoder.forward = failing  # type: ignore[method-assign,assignment]
        with pytest.raises(RuntimeError, match="is gone"):
            engine.run_step(plan)
        engine._decoder.forward = forward  # type: ignore[method-assign]
        events += engine.run_step(plan)
    assert_same(collect(events, case.requests), case.reference)


@pytest.mark.parametrize("experts", [0, 4])
def test_kernels_read_nothing_behind_the_window(tmp_path: Path, experts: int) -> None:
    """bfloat16, with the compiled kernels where this machine has them."""
    directory = make_checkpoint(
        tmp_path, experts=experts, dtype="bfloat16", head_dim=32, sliding_window=9
    )
    plan = tiny_plan(directory, max_model_len=MAX_LEN, dtype="bfloat16", num_blocks=40,
                     enable_prefix_caching=False, max_num_batched_tokens=24)  # fmt: skip
    requests = greedy_requests(make_prompts(512, LENGTHS), 24)
    calm = run_engine(colocated_engine(plan, CPU).engine, requests)
    assert run_watched(colocated_engine(plan, CPU).engine, requests, 9) == calm
