"""params.json in both dialects, against the config.json that stands for the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model.config import ModelConfig
from model.config_file import ConfigError
from model.raw_params import config_values
from tests.checkpoints import write_tokenizer

INFERENCE: dict[str, Any] = {
    "dim": 64, "n_layers": 5, "head_dim": 24, "hidden_dim": 96, "n_heads": 4, "n_kv_heads": 2,
    "norm_eps": 1e-6, "vocab_size": 320, "moe": {"num_experts_per_tok": 3, "num_experts": 7},
}  # fmt: skip
RELEASE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 5, "head_dim": 24, "intermediate_size": 96,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 320,
    "num_local_experts": 7, "num_experts_per_tok": 3,
}  # fmt: skip
SAME = ModelConfig(
    hidden_size=64, num_layers=5, num_heads=4, num_kv_heads=2, head_dim=24, intermediate_size=96,
    num_experts=7, top_k=3, vocab_size=320, rms_norm_eps=1e-6, rope_theta=1e6,
    max_position_embeddings=32768, dtype="bfloat16", bos_token_id=1, eos_token_ids=(2,),
)  # fmt: skip


def write(directory: Path, params: Any, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A directory with these params and the beginning of a checkpoint."""
    (directory / "params.json").write_text(json.dumps(params))
    weights = {"tok_embeddings.weight": torch.zeros(320, 64, dtype=dtype)}
    save_file(weights, directory / "consolidated.safetensors")
    return directory


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    """All but one key, which may lie in `moe`."""
    outer, _, inner = key.partition(".")
    if inner:
        return values | {outer: without(values[outer], inner)}
    return {name: value for name, value in values.items() if name != key}


@pytest.mark.parametrize("params", [INFERENCE, RELEASE], ids=["inference", "release"])
def test_both_dialects_say_the_same(tmp_path: Path, params: dict[str, Any]) -> None:
    assert ModelConfig.from_dir(write(tmp_path, params)) == SAME


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_dtype_is_that_of_the_files(tmp_path: Path, dtype: str) -> None:
    config = ModelConfig.from_dir(write(tmp_path, INFERENCE, getattr(torch, dtype)))
    assert config == SAME.model_copy(update={"dtype": dtype})


@pytest.mark.parametrize(
    ("params", "key"),
    [(INFERENCE, key) for key in INFERENCE if key not in ("moe", "head_dim", "dim")]
    + [(INFERENCE, "moe.num_experts"), (INFERENCE, "moe.num_experts_per_tok")]
    + [
        (RELEASE, key)
        for key in RELEASE
        if key not in ("hidden_size", "head_dim", "num_local_experts", "num_experts_per_tok")
    ],
)
def test_a_key_that_is_missing_is_named(tmp_path: Path, params: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        ModelConfig.from_dir(write(tmp_path, without(params, key)))
    assert str(refusal.value) == f"{tmp_path / 'params.json'}: {key} is missing"


def test_without_the_width_both_names_of_it_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"params\.json: dim is missing, and hidden_size too"):
        ModelConfig.from_dir(write(tmp_path, without(INFERENCE, "dim")))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"moe": 8}, "moe is 8; an object is needed"),
        ({"lora": {"rank": 8}}, "lora is {'rank': 8}, which is not supported"),
        ({"vision_encoder": {"a": 1}}, "vision_encoder is {'a': 1}, which is not supported"),
        ({"model_type": "mamba"}, "model_type is 'mamba'; only a transformer is supported"),
        ({"n_layers": "five"}, "n_layers is 'five': input should be a valid integer"),
        ({"n_heads": 5}, "n_heads (5) is not a multiple of n_kv_heads (2)"),
        ({"dim": 63, "head_dim": None}, "dim (63) is not a multiple of n_heads (4)"),
        ({"sliding_window": [64]}, "sliding_window is [64]: input should be a valid integer"),
        (
            {"moe": {"num_experts": 2, "num_experts_per_tok": 3}},
            "moe.num_experts_per_tok (3) exceeds moe.num_experts (2)",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_named(
    tmp_path: Path, change: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        ModelConfig.from_dir(write(tmp_path, INFERENCE | change))
    assert str(refusal.value).startswith(f"{tmp_path / 'params.json'}: {fault}")


def test_what_is_left_out_has_the_values_the_models_were_trained_with() -> None:
    plain = config_values(INFERENCE)
    assert (plain["rope_theta"], plain["max_position_embeddings"]) == (1e6, 32768)
    assert plain["sliding_window"] is None
    windowed = config_values(INFERENCE | {"sliding_window": "4096"})
    assert (windowed["rope_theta"], windowed["sliding_window"]) == (1e4, 4096)
    assert config_values(INFERENCE | {"rope_theta": 7.0})["rope_theta"] == 7.0
    assert config_values(INFERENCE | {"max_seq_len": 128})["max_position_embeddings"] == 128
    assert config_values(without(RELEASE, "num_experts_per_tok"))["num_experts_per_tok"] == 2


def test_without_experts_it_is_a_mistral(tmp_path: Path) -> None:
    config = ModelConfig.from_dir(write(tmp_path, without(INFERENCE, "moe")))
    assert config.is_dense


def test_a_head_size_that_is_left_out_follows_from_the_width(tmp_path: Path) -> None:
    assert ModelConfig.from_dir(write(tmp_path, without(INFERENCE, "head_dim"))).head_dim == 16


def test_bos_and_eos_are_the_tokenizer_s(tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    write_tokenizer(write(tmp_path, INFERENCE), 320)
    protocol: Any = sentencepiece_model_pb2
    model = protocol.ModelProto()
    model.ParseFromString((tmp_path / "tokenizer.model").read_bytes())
    pieces = [one.piece for one in model.pieces]
    model.pieces[1].piece, model.pieces[2].piece = pieces[2], pieces[1]  # exchanged
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    config = ModelConfig.from_dir(tmp_path)
    assert (config.bos_token_id, config.eos_token_ids) == (2, (1,))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
    assert ModelConfig.from_dir(tmp_path).eos_token_ids == (1, 5)
