"""Checkpoints saved with bitsandbytes: what is read of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
import transformers.quantizers.quantizer_bnb_4bit as quantizer_4bit
import transformers.quantizers.quantizer_bnb_8bit as quantizer_8bit
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from actors.ranks.engine_build import colocated_engine
from model.bitsandbytes_matrix import EightBitMatrix, FourBitMatrix
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.projection import project, project_together
from tests.bitsandbytes_checkpoints import (
    KINDS,
    linear_layers,
    quantize_checkpoint,
    restore_4bit,
)
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import tiny_plan

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"hidden": 32, "head_dim": 16, "ffn": 48, "experts": 2, "layers": 1}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("plain"), **TINY)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mistral_is_stored_as_transformers_itself_stores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # It asks for accelerate, which it does not use to quantize on one device.
    for quantizer in (quantizer_4bit, quantizer_8bit):
        monkeypatch.setattr(quantizer, "is_accelerate_available", lambda *_: True)
    source = make_checkpoint(tmp_path / "dense", **TINY | {"experts": 0})
    settings = BitsAndBytesConfig(**KINDS[kind])
    theirs: Any = AutoModelForCausalLM.from_pretrained(source, quantization_config=settings)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = quantize_checkpoint(source, tmp_path / "ours", kind, linear_layers)
    wanted, got = (
        load_file(directory / "model.safetensors") for directory in (tmp_path / "theirs", ours)
    )
    assert wanted.keys() == got.keys()
    for key, tensor in wanted.items():
        assert tensor.dtype == got[key].dtype and torch.equal(tensor, got[key]), key
    assert (
        json.loads((tmp_path / "theirs" / "config.json").read_text())["quantization_config"]
        == json.loads((ours / "config.json").read_text())["quantization_config"]
    )
    Checkpoint(tmp_path / "theirs").verify(ModelConfig.from_dir(tmp_path / "theirs"))


def test_experts_that_transformers_5_left_dense_are_served_as_such(
    tmp_path: Path, plain: Path
) -> None:
    directory = quantize_checkpoint(
        plain, tmp_path / "stored", "nf4", lambda key: "self_attn" in key
    )
    built = colocated_engine(tiny_plan(directory, dtype="bfloat16"), CPU)
    assert built.load is not None


@pytest.mark.parametrize("kind", ["nf4", "nf4-nested", "fp4"])
@pytest.mark.parametrize("shape", [(64, 128), (48, 96), (33, 64), (7, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_four_bits_multiply_as_what_they_stand_for(
    kind: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    matrix, dense_OI = four_bit_matrix(kind, shape, dtype)
    x_TI = torch.randn(5, shape[1], generator=torch.Generator().manual_seed(2)).to(dtype)
    exact = x_TI.float() @ dense_OI.T
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    before = matrix.packed.clone()
    for projection in (project(matrix), project_together((matrix, matrix))):
        got = projection(x_TI)
        assert got.dtype == dtype and torch.isfinite(got).all()
        torch.testing.assert_close(
            got[:, : shape[0]].float(),
            exact,
            rtol=rounding,
            atol=rounding * float(exact.abs().max()),
        )
        assert torch.equal(got[:, -shape[0] :], got[:, : shape[0]])
    assert torch.equal(matrix.packed, before)


def four_bit_matrix(
    kind: str, shape: tuple[int, int], dtype: torch.dtype
) -> tuple[FourBitMatrix, torch.Tensor]:
    """A random matrix, and what it stands for."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    quant_type, _, nested = kind.partition("-")
    packed, state = bnb.quantize_4bit(
        weight, quant_type=quant_type, compress_statistics=bool(nested)
    )
    dense_OI = restore_4bit(packed, state)
    state.dtype = dtype
    return FourBitMatrix(shape, dtype, packed, state), dense_OI


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 6])
def test_eight_bits_are_exact_in_fp32_and_llm_int8_in_16_bits(
    dtype: torch.dtype, rows: int
) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(48, 64, generator=generator)
    numbers, scales, _ = bnb.int8_vectorwise_quant(weight.half())
    matrix = EightBitMatrix(numbers, scales, dtype, threshold=6.0)
    dense_OI = numbers * (scales / 127)[:, None]
    x_TI = torch.randn(rows, 64, generator=generator)
    x_TI[:, 11] = 40.0  # without the outliers' own product, all other inputs would be lost
    exact = x_TI.to(dtype).float() @ dense_OI.T
    got = project(matrix)(x_TI.to(dtype)).float()
    off = (got - exact).abs().max()
    assert off < (1e-4 if dtype == torch.float32 else 0.02 * exact.abs().max())
    if dtype != torch.float32 and rows > 1:
        without = EightBitMatrix(numbers, scales, dtype, threshold=0.0)
        assert (project(without)(x_TI.to(dtype)).float() - exact).abs().max() > 2 * off
