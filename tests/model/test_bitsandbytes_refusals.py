"""Checkpoints saved with bitsandbytes that cannot be served: refused by file and key."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.model_plan import check_checkpoint
from actors.ranks.engine_build import colocated_engine
from configs.schema import WindroseConfig
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.config_file import ConfigError
from model.shards import CheckpointError
from tests.bitsandbytes_checkpoints import quantize_checkpoint
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import tiny_plan

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"hidden": 32, "head_dim": 16, "ffn": 48, "experts": 2, "layers": 1}
Q = "model.layers.0.self_attn.q_proj"
W2 = "model.layers.0.block_sparse_moe.experts.1.w2"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("plain"), **TINY)


def edited(
    directory: Path, target: Path, kind: str, change: Callable[[dict[str, torch.Tensor]], None]
) -> Path:
    """A quantized copy of `directory` whose tensors `change` has changed."""
    quantize_checkpoint(directory, target, kind)
    file = target / "model.safetensors"
    tensors = {key: value.clone() for key, value in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return target


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]

    return change


def put(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = value

    return change


STATE = f"{Q}.weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("kind", "change", "fault"),
    [
        ("nf4", drop(STATE), f"{STATE} (or fp4): missing"),
        ("nf4", drop(f"{Q}.weight.absmax"), f"{Q}.weight.absmax: missing, and {Q}.weight cannot"),
        ("nf4", drop(f"{Q}.weight.quant_map"), f"{Q}.weight.quant_map: missing"),
        (
            "nf4-nested",
            drop(f"{W2}.weight.nested_quant_map"),
            f"{W2}.weight.nested_quant_map: missing",
        ),
        (
            "nf4-nested",
            drop(f"{W2}.weight.nested_absmax"),
            f"{W2}.weight.absmax: dtype is U8; F32 is needed",
        ),
        (
            "nf4",
            put(f"{Q}.weight", torch.zeros(7, 1, dtype=torch.uint8)),
            f"{Q}.weight: expected shape [1024, 1], found [7, 1]",
        ),
        (
            "nf4",
            put(f"{Q}.weight", torch.zeros(64, 32, dtype=torch.int8)),
            f"{Q}.weight: dtype is I8; U8 is needed",
        ),
        ("int8", drop(f"{W2}.SCB"), f"{W2}.SCB: missing, and {W2}.weight cannot"),
        (
            "int8",
            put(f"{W2}.SCB", torch.zeros(33)),
            f"{W2}.SCB: expected shape [32], found [33]",
        ),
        (
            "int8",
            put(f"{W2}.weight", torch.zeros(48, 32, dtype=torch.int8)),
            f"{W2}.weight: expected shape [32, 48], found [48, 32]",
        ),
        (
            "int8",
            put("model.norm.weight", torch.zeros(32, dtype=torch.int8)),
            "model.norm.weight: dtype is I8; one of F32, BF16, F16 is needed",
        ),
        ("int8", put(f"{Q}.bias", torch.zeros(64)), f"{Q}.bias: not a tensor of this model"),
    ],
)
def test_headers_that_do_not_fit_are_refused_by_file_and_key(
    tmp_path: Path, plain: Path, kind: str, change: Any, fault: str
) -> None:
    directory = edited(plain, tmp_path / "stored", kind, change)
    with pytest.raises(CheckpointError, match=re.escape(fault)) as refusal:
        Checkpoint(directory).verify(ModelConfig.from_dir(directory))
    assert f"  {directory / 'model.safetensors'}: " in str(refusal.value)


def text(state: str) -> torch.Tensor:
    return torch.tensor(list(state.encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("kind", "change", "fault"),
    [
        (
            "nf4",
            put(STATE, text('{"shape": [32, 64], "blocksize": 64, "quant_type": "nf4"}')),
            f"{STATE}: shape is [32, 64]; [64, 32] is needed",
        ),
        (
            "nf4",
            put(STATE, text('{"shape": [64, 32], "blocksize": 4096, "quant_type": "nf4"}')),
            f"{STATE}: blocksize is 4096; 1 to 1024 are supported",
        ),
        ("nf4", put(STATE, text("{")), f"{STATE}: not the JSON that bitsandbytes writes"),
        (
            "nf4",
            put(f"{Q}.weight.absmax", torch.ones(31)),
            f"{Q}.weight.absmax: expected shape [32], found [31]",
        ),
        (
            "int8",
            put(f"{Q}.weight_format", torch.tensor(2, dtype=torch.uint8)),
            f"{Q}.weight_format: only 0 (row-major) is supported",
        ),
    ],
)
def test_contents_that_do_not_fit_are_refused_by_file_and_key(
    tmp_path: Path, plain: Path, kind: str, change: Any, fault: str
) -> None:
    directory = edited(plain, tmp_path / "stored", kind, change)
    with pytest.raises(CheckpointError) as refusal:
        colocated_engine(tiny_plan(directory), CPU)
    assert str(refusal.value).startswith(f"{directory / 'model.safetensors'}: {fault}")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"quant_method": "gptq"}, "quant_method is 'gptq'; only 'bitsandbytes' is supported"),
        ({"load_in_8bit": True}, "one of them must be true"),
        ({"load_in_4bit": False}, "one of them must be true"),
        ({"bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type is 'int4'; only 'nf4' or 'fp4' is"),
        ({"bnb_4bit_quant_storage": "bfloat16"}, "bnb_4bit_quant_storage is 'bfloat16'; only"),
        ({"llm_int8_threshold": "6"}, "llm_int8_threshold is '6'; a number is needed"),
    ],
)
def test_what_config_json_asks_for_and_is_not_there_is_refused(
    tmp_path: Path, plain: Path, changes: dict[str, Any], fault: str
) -> None:
    directory = quantize_checkpoint(plain, tmp_path / "stored", "nf4", **changes)
    with pytest.raises(ConfigError, match=re.escape(fault)) as refusal:
        ModelConfig.from_dir(directory)
    assert str(refusal.value).startswith(f"{directory / 'config.json'}: quantization_config")


def test_the_first_checkpoints_that_named_no_method_are_read(tmp_path: Path, plain: Path) -> None:
    directory = quantize_checkpoint(plain, tmp_path / "stored", "int8")
    file = directory / "config.json"
    values = json.loads(file.read_text())
    values["quantization_config"] = {"load_in_8bit": True, "llm_int8_threshold": 5}
    file.write_text(json.dumps(values))
    stored = ModelConfig.from_dir(directory).bitsandbytes
    assert stored is not None and (stored.bits, stored.threshold) == (8, 5.0)


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = quantize_checkpoint(plain, tmp_path / "stored", "int8")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(ConfigError, match=r"config\.json: .*pip install 'windrose\[bitsandbytes\]"):
        check_checkpoint(WindroseConfig(model=str(directory)))
    check_checkpoint(WindroseConfig(model=str(plain)))


def test_rounding_once_more_is_refused(tmp_path: Path, plain: Path) -> None:
    directory = quantize_checkpoint(plain, tmp_path / "stored", "int8")
    with pytest.raises(ValueError, match=r"quantization is int4, but .* in 8 bits already"):
        check_checkpoint(WindroseConfig(model=str(directory), quantization="int4"))
