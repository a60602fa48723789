from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoConfig

from model.config import ModelConfig
from model.config_file import ConfigError
from model.head import ModelHead

V4: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 24,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 2048,
    "model_type": "mixtral",
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "num_local_experts": 7,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_theta": 12345,
    "sliding_window": 48,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0",
    "vocab_size": 320,
}
V5: dict[str, Any] = {key: V4[key] for key in V4 if key not in ("rope_theta", "torch_dtype")} | {
    "dtype": "bfloat16",
    "rope_parameters": {"rope_theta": 12345.0, "rope_type": "default"},
    "transformers_version": "5.2.0",
}


class Absent:
    def __repr__(self) -> str:
        """The same in every process: it stands in names of tests."""
        return "ABSENT"


ABSENT = Absent()


def write(directory: Path, config: Any, generation: Any = None) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`config` with some keys replaced, or taken out where the value is ABSENT."""
    return {key: value for key, value in (config | changes).items() if value is not ABSENT}


@pytest.mark.parametrize("config", [V4, V5], ids=["v4", "v5"])
def test_both_styles_of_config_give_the_same_values(tmp_path: Path, config: dict[str, Any]) -> None:
    assert ModelConfig.from_dir(write(tmp_path, config)) == ModelConfig(
        hidden_size=64,
        num_layers=5,
        num_heads=4,
        num_kv_heads=2,
        head_dim=24,
        intermediate_size=96,
        num_experts=7,
        top_k=3,
        vocab_size=320,
        rms_norm_eps=1e-6,
        rope_theta=12345.0,
        sliding_window=48,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        dtype="bfloat16",
        bos_token_id=1,
        eos_token_ids=(2,),
    )


@pytest.mark.parametrize("config", [V4, V5], ids=["v4", "v5"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head_dim": ABSENT},
        {"head_dim": None},
        {"sliding_window": None, "tie_word_embeddings": False},
        {"eos_token_id": [2, 7]},
        {"rope_scaling": None},
    ],
    ids=str,
)
def test_values_are_those_that_transformers_reads(
    tmp_path: Path, config: dict[str, Any], changes: dict[str, Any]
) -> None:
    write(tmp_path, changed(config, changes))
    ours = ModelConfig.from_dir(tmp_path)
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert ours.num_layers == theirs.num_hidden_layers
    assert ours.num_heads == theirs.num_attention_heads
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == theirs.head_dim or theirs.head_dim is None
    assert ours.head_dim == (24 if changes.get("head_dim", 24) == 24 else 16)
    assert ours.num_experts == theirs.num_local_experts
    assert ours.top_k == theirs.num_experts_per_tok
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.sliding_window == theirs.sliding_window
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert f"torch.{ours.dtype}" == str(theirs.dtype)
    assert list(ours.eos_token_ids) in (theirs.eos_token_id, [theirs.eos_token_id])


DENSE: dict[str, Any] = changed(
    V4,
    {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "num_local_experts": ABSENT,
        "num_experts_per_tok": ABSENT,
        "output_router_logits": ABSENT,
    },
)


def test_a_mistral_is_a_model_without_experts(tmp_path: Path) -> None:
    mixtral, mistral = tmp_path / "mixtral", tmp_path / "mistral"
    for directory, config in ((mixtral, V4), (mistral, DENSE)):
        directory.mkdir()
        write(directory, config)
    dense = ModelConfig.from_dir(mistral)
    assert dense.is_dense
    assert not ModelConfig.from_dir(mixtral).is_dense
    assert (dense.head, dense.head.task) == (ModelHead("MistralForCausalLM"), "generate")
    with_experts = {"num_experts": 7, "top_k": 3, "head": ModelHead()}
    assert dense.model_copy(update=with_experts) == ModelConfig.from_dir(mixtral)
    assert dense.sliding_window == AutoConfig.from_pretrained(mistral).sliding_window == 48


@pytest.mark.parametrize("window", [ABSENT, None, 7])
@pytest.mark.parametrize("config", [V4, V5, DENSE], ids=["v4", "v5", "dense"])
def test_without_a_sliding_window_s_key_it_is_the_model_s_own(
    tmp_path: Path, config: dict[str, Any], window: object
) -> None:
    write(tmp_path, changed(config, {"sliding_window": window}))
    theirs = AutoConfig.from_pretrained(tmp_path).sliding_window
    assert ModelConfig.from_dir(tmp_path).sliding_window == theirs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "only one of MistralForCausalLM, MistralModel"),
        ({"model_type": "mixtral", "architectures": ABSENT}, "num_local_experts is missing"),
        ({"intermediate_size": ABSENT}, "intermediate_size is missing"),
    ],
    ids=str,
)
def test_a_mistral_that_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ModelConfig.from_dir(write(tmp_path, changed(DENSE, changes)))


@pytest.mark.parametrize(
    ("eos", "generation", "expected"),
    [
        (2, None, (2,)),
        ([5, 2], None, (5, 2)),
        (2, {"eos_token_id": [9, 2, 4]}, (2, 9, 4)),
        ([4, 2], {"eos_token_id": 2}, (4, 2)),
        (None, {"eos_token_id": 3}, (3,)),
        (ABSENT, {"temperature": 0.5}, ()),
    ],
)
def test_eos_ids_of_both_files_are_joined_in_order(
    tmp_path: Path, eos: Any, generation: Any, expected: tuple[int, ...]
) -> None:
    write(tmp_path, changed(V5, {"eos_token_id": eos}), generation)
    assert ModelConfig.from_dir(tmp_path).eos_token_ids == expected
    own = eos if isinstance(eos, list) else [eos] if isinstance(eos, int) else []
    alone = ModelConfig.from_dir(tmp_path, generation_config=False)
    assert alone.eos_token_ids == tuple(own)


@pytest.mark.parametrize("changes", [{"dtype": ABSENT}, {"dtype": None}], ids=str)
def test_no_dtype_means_float32(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert ModelConfig.from_dir(write(tmp_path, changed(V5, changes))).dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; only 'mixtral' and 'mistral' are"),
        ({"model_type": ABSENT}, "model_type is missing"),
        ({"architectures": ["MixtralForTokenClassification"]}, "MixtralForTokenClassification"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is supported"),
        ({"attention_bias": True}, "attention_bias is True, which is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn'"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "rope_parameters.partial_rotary_factor is 0.5",
        ),
        ({"rope_parameters": [1]}, "rope_parameters is [1]; an object is needed"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_theta is missing"),
        ({"rope_parameters": ABSENT}, "rope_theta is missing"),
        ({"rope_parameters": {"rope_theta": "big"}}, "rope_theta is 'big'"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0"),
        ({"hidden_size": ABSENT}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64': input should be a valid integer"),
        ({"hidden_size": "64", "head_dim": None}, "hidden_size is '64'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads is 0"),
        ({"num_key_value_heads": ABSENT}, "num_key_value_heads is missing"),
        ({"num_key_value_heads": None}, "num_key_value_heads is None"),
        ({"num_key_value_heads": 3}, "num_attention_heads (4) is not a multiple of"),
        ({"hidden_size": 66, "head_dim": None}, "hidden_size (66) is not a multiple of"),
        ({"head_dim": 3}, "head_dim (3) is odd"),
        ({"intermediate_size": 1.5}, "intermediate_size is 1.5"),
        ({"num_local_experts": 0}, "num_local_experts is 0"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok is 0"),
        ({"num_local_experts": True}, "num_local_experts is True"),
        ({"num_experts_per_tok": 8}, "num_experts_per_tok (8) exceeds num_local_experts (7)"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"bos_token_id": None}, "bos_token_id is None"),
        ({"bos_token_id": 320}, "bos_token_id (320) is outside vocab_size (320)"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"eos_token_id": [2, True]}, "eos_token_id is [2, True]"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"eos_token_id": 320}, "eos_token_id (320) is outside vocab_size (320)"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused_by_file_key_and_value(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write(tmp_path, changed(V5, changes))
    with pytest.raises(ConfigError) as refusal:
        ModelConfig.from_dir(tmp_path)
    text = str(refusal.value)
    assert text.startswith(f"{tmp_path / 'config.json'}: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]", b""], ids=str)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_files_that_hold_no_object_are_refused_by_name(
    tmp_path: Path, name: str, content: bytes
) -> None:
    write(tmp_path, V5, {})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"not JSON|object is needed") as refusal:
        ModelConfig.from_dir(tmp_path)
    assert str(tmp_path / name) in str(refusal.value)


def test_a_bad_eos_id_is_laid_at_the_door_of_its_file(tmp_path: Path) -> None:
    write(tmp_path, V5, {"eos_token_id": "x"})
    with pytest.raises(ConfigError, match=r"generation_config\.json: eos_token_id is 'x'"):
        ModelConfig.from_dir(tmp_path)


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        ModelConfig.from_dir(tmp_path)


def test_a_config_cannot_be_changed(tmp_path: Path) -> None:
    config = ModelConfig.from_dir(write(tmp_path, V4))
    with pytest.raises(ValidationError, match="frozen"):
        config.top_k = 1
