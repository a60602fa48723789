"""Low-rank experts, served as factors, against transformers with two linear layers for each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.ranks.engine_build import all_experts, colocated_engine
from actors.ranks.expert import ExpertRank
from actors.ranks.progress import Progress
from model.checkpoint import Checkpoint
from model.loading import load_decoder, load_experts
from tests.actors.threaded_pipeline import running
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
from tests.low_rank import load_low_rank, make_low_rank, tensors_of

CPU = torch.device("cpu")
MAX_TOKENS = 12
PROMPTS = make_prompts(512, (33, 1, 90, 16, 5, 24))

_EXPERT = "model.layers.{}.block_sparse_moe.experts.{}.{}"
# Layer 0: an expert of factors, one of dense matrices, and every mixture; odd and even ranks.
RANKS = {
    **{_EXPERT.format(0, 0, w): rank for w, rank in (("w1", 20), ("w2", 9), ("w3", 32))},
    _EXPERT.format(0, 1, "w1"): 16,
    _EXPERT.format(0, 1, "w2"): 40,
    _EXPERT.format(0, 3, "w3"): 1,
    **{_EXPERT.format(1, e, w): 8 + 8 * e for e in range(4) for w in ("w1", "w2", "w3")},
    "model.layers.0.self_attn.q_proj": 24,
    "model.layers.0.self_attn.v_proj": 8,
    "model.layers.1.self_attn.o_proj": 30,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_low_rank(make_checkpoint(tmp_path_factory.mktemp("low_rank")), RANKS)


@pytest.fixture(scope="module")
def reference(directory: Path) -> list[Generated]:
    model = load_low_rank(directory)
    return [generate(model, prompt, MAX_TOKENS) for prompt in PROMPTS]


def test_colocated(directory: Path, reference: list[Generated], tmp_path: Path) -> None:
    engine = colocated_engine(tiny_plan(directory, max_num_batched_tokens=32), CPU).engine
    assert_same(run_engine(engine, greedy_requests(PROMPTS, MAX_TOKENS)), reference)
    dense = load_reference(make_checkpoint(tmp_path))
    assert any(
        generate(dense, prompt, MAX_TOKENS).token_ids != one.token_ids
        for prompt, one in zip(PROMPTS, reference, strict=True)
    ), "factors change nothing: the test shows nothing"


def test_with_experts_apart(directory: Path, reference: list[Generated]) -> None:
    plan = tiny_plan(directory, attention_actors=2, expert_actors=3)
    requests = greedy_requests(PROMPTS, MAX_TOKENS)
    with running(plan) as pipeline:
        pipeline.submit(0, requests[::2])
        pipeline.submit(1, requests[1::2])
        events = pipeline.until_ended(len(requests))
    assert_same(collect(events, requests), reference)


def test_a_dense_model(tmp_path: Path) -> None:
    ranks = {"model.layers.0.mlp.up_proj": 12, "model.layers.1.mlp.down_proj": 20}
    directory = make_low_rank(make_checkpoint(tmp_path, experts=0), ranks)
    model = load_low_rank(directory)
    engine = colocated_engine(tiny_plan(directory), CPU).engine
    want = [generate(model, prompt, MAX_TOKENS) for prompt in PROMPTS]
    assert_same(run_engine(engine, greedy_requests(PROMPTS, MAX_TOKENS)), want)


def test_no_more_is_read_or_held_than_the_factors(directory: Path) -> None:
    plan, checkpoint = tiny_plan(directory), Checkpoint(directory)
    sizes = {key: tensor.nbytes for key, tensor in tensors_of(directory).items()}
    read: list[int] = []
    weights = load_decoder(checkpoint, plan.model, plan.torch_dtype, CPU, read.append)
    assert sum(read) == weights.num_bytes
    assert weights.num_bytes == sum(size for key, size in sizes.items() if ".experts." not in key)
    for layer, expert in all_experts(plan):
        read.clear()
        held = [(layer, expert)]
        shard = load_experts(checkpoint, plan.model, held, plan.torch_dtype, CPU, read.append)
        prefix = f"model.layers.{layer}.block_sparse_moe.experts.{expert}."
        own = sum(size for key, size in sizes.items() if key.startswith(prefix))
        assert sum(read) == shard.num_bytes == own


def test_an_expert_rank_knows_what_it_has_to_read(directory: Path) -> None:
    progress = Progress()
    ExpertRank(tiny_plan(directory, expert_actors=2), CPU, progress).load([(0, 0), (1, 3)])
    assert progress.read_bytes == progress.total_bytes > 0


@pytest.mark.parametrize(("quantization", "dtype"), [("none", "bfloat16"), ("int8", "float32")])
def test_log_probabilities_stay_near_in_fewer_bits(
    directory: Path, quantization: str, dtype: str
) -> None:
    model = load_low_rank(directory)
    plan = tiny_plan(directory, quantization=quantization, dtype=dtype)
    engine, errors = colocated_engine(plan, CPU).engine, []
    got = run_engine(engine, greedy_requests(PROMPTS, MAX_TOKENS))
    for prompt, one in zip(PROMPTS, got, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + one.token_ids])).logits[0]
        rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
        exact = rows[torch.arange(MAX_TOKENS), torch.tensor(one.token_ids)]
        errors.append((torch.tensor(one.logprobs) - exact).abs())
    # Not all: where two experts' logits nearly tie, fewer bits pick another one.
    assert 0 < torch.cat(errors).quantile(0.75) < 0.1
