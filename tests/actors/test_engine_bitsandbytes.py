"""Engines on checkpoints saved with bitsandbytes, against transformers on what these stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.messages import GenerateRequest
from actors.ranks.engine_build import colocated_engine
from model.bitsandbytes_library import load_library
from model.checkpoint import Checkpoint
from model.loading import load_decoder, load_experts
from tests.actors.threaded_pipeline import CPU, running
from tests.bitsandbytes_checkpoints import (
    KINDS,
    dequantize_checkpoint,
    linear_layers,
    linear_layers_without_gates,
    quantize_checkpoint,
)
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

MAX_TOKENS = 12
LENGTHS = (33, 1, 90, 16, 5, 24)
PROMPTS = make_prompts(512, LENGTHS)
# Head dimension, hidden and expert sizes are such that the library's packed kernel takes them.
SHAPE: dict[str, Any] = {"hidden": 64, "head_dim": 32, "ffn": 128}


@dataclass(frozen=True)
class Case:
    plain: Path
    directory: Path
    reference: Any
    want: list[Generated]


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Case]:
    @cache
    def make(kind: str, experts: int) -> Case:
        root = tmp_path_factory.mktemp(kind)
        plain = make_checkpoint(root / "plain", experts=experts, **SHAPE)
        # Gates are linear layers too: with one kind they are quantized, as without a skip list.
        converted = linear_layers if kind == "nf4" else linear_layers_without_gates
        directory = quantize_checkpoint(plain, root / "stored", kind, converted)
        reference = load_reference(dequantize_checkpoint(directory, root / "dense"))
        want = [generate(reference, prompt, MAX_TOKENS) for prompt in PROMPTS]
        return Case(plain, directory, reference, want)

    return make


def requests() -> list[GenerateRequest]:
    return greedy_requests(PROMPTS, MAX_TOKENS)


@pytest.mark.parametrize(
    ("kind", "experts"), [*((kind, 4) for kind in KINDS), ("int8", 0), ("nf4-nested", 0)]
)
def test_tokens_are_those_of_the_weights_it_stands_for(
    case_of: Callable[[str, int], Case], kind: str, experts: int
) -> None:
    case = case_of(kind, experts)
    engine = colocated_engine(tiny_plan(case.directory, max_num_batched_tokens=16), CPU).engine
    assert_same(run_engine(engine, requests()), case.want)


def test_rounding_changes_tokens(case_of: Callable[[str, int], Case]) -> None:
    case = case_of("nf4", 4)
    plain = load_reference(case.plain)
    assert any(
        generate(plain, prompt, MAX_TOKENS).token_ids != one.token_ids
        for prompt, one in zip(PROMPTS, case.want, strict=True)
    ), "then the other tests show nothing"


@pytest.mark.parametrize("kind", ["int8", "fp4-nested"])
def test_with_experts_apart_the_tokens_are_the_same(
    case_of: Callable[[str, int], Case], kind: str
) -> None:
    case = case_of(kind, 4)
    with running(tiny_plan(case.directory, expert_actors=2)) as pipeline:
        pipeline.submit(0, requests())
        assert_same(collect(pipeline.until_ended(len(PROMPTS)), requests()), case.want)


@pytest.mark.parametrize("expert_actors", [0, 2])
@pytest.mark.parametrize("kind", ["int8", "nf4-nested", "fp4"])
def test_in_bfloat16_logits_are_near_it(
    case_of: Callable[[str, int], Case], kind: str, expert_actors: int
) -> None:
    case = case_of(kind, 4)
    plan = tiny_plan(case.directory, dtype="bfloat16", expert_actors=expert_actors)
    with running(plan) as pipeline:
        pipeline.submit(0, requests())
        generated = collect(pipeline.until_ended(len(PROMPTS)), requests())
    errors = []
    for prompt, got in zip(PROMPTS, generated, strict=True):
        with torch.inference_mode():
            logits = case.reference(torch.tensor([prompt + got.token_ids])).logits[0]
        rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
        exact = rows[torch.arange(len(got.token_ids)), torch.tensor(got.token_ids)]
        errors.append((torch.tensor(got.logprobs) - exact).abs())
    # Not all: where two experts' logits nearly tie, bf16 picks another one than fp32.
    assert torch.cat(errors).quantile(0.75) < 0.08


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("nf4", 4.5), ("fp4-nested", 4.13)])
def test_weights_are_held_in_their_quantized_bytes(
    case_of: Callable[[str, int], Case], kind: str, bits: float, dtype: torch.dtype
) -> None:
    case = case_of(kind, 4)
    model = tiny_plan(case.directory).model
    checkpoint, everything = Checkpoint(case.directory), [(i, e) for i in (0, 1) for e in range(4)]
    shard = load_experts(checkpoint, model, everything, dtype, CPU, workers=2)
    weights = 2 * 4 * 3 * model.hidden_size * model.intermediate_size
    scales = 2 * 4 * (2 * model.intermediate_size + model.hidden_size) * 4 if bits == 8 else 0
    if dtype == torch.bfloat16 and bits != 8 and load_library().functional.has_avx512bf16():
        bits = 4.25  # packed for the library's kernel: a scale of bf16 for 64 weights
    assert shard.num_bytes == pytest.approx(weights * bits / 8 + scales, rel=0.01)
    decoder = load_decoder(checkpoint, model, dtype, CPU)
    dense = load_decoder(Checkpoint(case.plain), tiny_plan(case.plain).model, dtype, CPU)
    saved = sum(layer.attention.num_bytes for layer in dense.layers) - sum(
        layer.attention.num_bytes for layer in decoder.layers
    )
    assert saved > 0 and dense.num_bytes - decoder.num_bytes == saved


def test_bytes_read_add_up_to_what_lies_on_disk(case_of: Callable[[str, int], Case]) -> None:
    case = case_of("nf4-nested", 4)
    read: list[int] = []
    colocated_engine(tiny_plan(case.directory), CPU, read.append)
    checkpoint = Checkpoint(case.directory)
    assert sum(read) == sum(entry.size_bytes for entry in checkpoint.entries.values())
    weights = [key for key in checkpoint.entries if key.endswith("weight")]
    assert checkpoint.total_bytes(weights) == sum(read)
