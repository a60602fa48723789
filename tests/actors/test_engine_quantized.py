"""The engine with quantized weights, against transformers on what these weights stand for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.ranks.engine_build import colocated_engine
from model.quantization import quantize
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import (
    assert_same,
    generate,
    greedy_requests,
    load_reference,
    make_prompts,
    run_engine,
    tiny_plan,
)

CPU = torch.device("cpu")
BITS = {"int8": 8, "int4": 4}
MAX_TOKENS = 12


def rounded(source: Path, target: Path, bits: int) -> Path:
    """The same checkpoint with the matrices as they are when rounded; the head always to int8."""
    shutil.copytree(source, target)
    for file in target.glob("*.safetensors"):
        tensors = load_file(file)
        for key, weight in tensors.items():
            if "self_attn" in key or "experts" in key or key == "lm_head.weight":
                rounded_to = 8 if key == "lm_head.weight" else bits
                tensors[key] = quantize(weight, rounded_to).dequantize(weight.dtype)
        save_file(tensors, file, metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("quantization", BITS)
def test_tokens_are_those_of_the_rounded_weights(tmp_path: Path, quantization: str) -> None:
    directory = make_checkpoint(tmp_path / "plain", hidden=96, head_dim=24)
    reference = load_reference(rounded(directory, tmp_path / "rounded", BITS[quantization]))
    prompts = make_prompts(reference.config.vocab_size)
    engine = colocated_engine(tiny_plan(directory, quantization=quantization), CPU).engine
    want = [generate(reference, prompt, MAX_TOKENS) for prompt in prompts]
    assert_same(run_engine(engine, greedy_requests(prompts, MAX_TOKENS)), want)
    plain = load_reference(directory)
    assert any(
        generate(plain, prompt, MAX_TOKENS).token_ids != one.token_ids
        for prompt, one in zip(prompts, want, strict=True)
    ), "rounding changed nothing: the test shows nothing"


@pytest.mark.parametrize("kernels", ["own", "torch"])
@pytest.mark.parametrize("quantization", BITS)
def test_in_bfloat16_the_kernels_agree_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str, kernels: str
) -> None:
    if kernels == "torch":
        monkeypatch.setattr("model.cpu_kernels.in_use.load_kernels", lambda: None)
    directory = make_checkpoint(tmp_path / "plain", hidden=96, head_dim=32, dtype="bfloat16")
    wide = tmp_path / "wide"
    reference = load_reference(rounded(directory, wide, BITS[quantization]))
    prompts = make_prompts(reference.config.vocab_size)
    plan = tiny_plan(directory, quantization=quantization, dtype="bfloat16")
    requests = greedy_requests(prompts, MAX_TOKENS)
    errors = []
    for prompt, got in zip(
        prompts, run_engine(colocated_engine(plan, CPU).engine, requests), strict=True
    ):
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + got.token_ids])).logits[0]
        rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
        exact = rows[torch.arange(MAX_TOKENS), torch.tensor(got.token_ids)]
        errors.append((torch.tensor(got.logprobs) - exact).abs())
    # Not all: where two experts' logits nearly tie, bf16 picks another one than fp32.
    assert torch.cat(errors).quantile(0.75) < 0.05
