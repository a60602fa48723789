"""params.json beside Mistral's own weights, in both of its dialects, as config.json would say it.

One is that of mistral-inference (dim, n_layers, ..., moe), the other has Hugging Face's names. Both
leave things out that then stand in no file:

- rope_theta: 1e4 with a sliding window and 1e6 without, as mistral-inference has it and the models
  were trained. (transformers' converters take 1e4, which is wrong for Mixtral.)
- the context: 32768, as transformers' converters take it.
- num_experts_per_tok in Hugging Face's dialect: 2, as transformers has it.
- BOS and EOS: the tokenizer's, and 1 and 2 where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.raw_files import read_raw_headers
from model.shards import CheckpointError
from model.tokenizer import TOKENIZER_FILE, Tokenizer

# Their names of what config.json calls otherwise.
_NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "hidden_dim",
    "rms_norm_eps": "norm_eps",
    "vocab_size": "vocab_size",
}
_EXPERT_NAMES = {"num_local_experts": "num_experts", "num_experts_per_tok": "num_experts_per_tok"}
_CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len")
_TYPES = ("transformer", "mixtral", "mistral")
# What would load and then compute something else, or is not about text.
_UNSUPPORTED = ("lora", "yarn", "quantization", "vision_encoder", "multimodal", "q_lora_rank",
                "kv_lora_rank", "llama_4_scaling")  # fmt: skip
_DEFAULT_CONTEXT = 32768
_DEFAULT_TOP_K = 2
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_BOS_ID, _EOS_ID = 1, 2


class ParamsError(ValueError):
    """A key of params.json is missing or cannot be used; the text names it."""


def config_values(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json that params.json says, its tokens and dtype aside.

    Raises:
        ParamsError: a key is missing, or says what is not supported.
    """
    for key in _UNSUPPORTED:
        if raw.get(key):
            raise ParamsError(f"{key} is {raw[key]!r}, which is not supported")
    model_type = raw.get("model_type", _TYPES[0])
    if model_type not in _TYPES:
        raise ParamsError(f"model_type is {model_type!r}; only a transformer is supported")
    if "dim" in raw:
        values = {ours: _given(raw, theirs) for ours, theirs in _NAMES.items()}
        experts = raw.get("moe")
        if experts is not None:
            if not isinstance(experts, dict):
                raise ParamsError(f"moe is {experts!r}; an object is needed")
            values |= {k: _given(experts, name, "moe.") for k, name in _EXPERT_NAMES.items()}
    elif "hidden_size" in raw:
        values = {name: _given(raw, name) for name in _NAMES}
        if raw.get("num_local_experts") is not None:
            values["num_local_experts"] = raw["num_local_experts"]
            values["num_experts_per_tok"] = raw.get("num_experts_per_tok", _DEFAULT_TOP_K)
    else:
        raise ParamsError("dim is missing, and hidden_size too")
    values["model_type"] = "mixtral" if "num_local_experts" in values else "mistral"
    window = _window(raw)
    values["sliding_window"] = window
    theta = raw.get("rope_theta")
    values["rope_theta"] = theta if theta is not None else 1e6 if window is None else 1e4
    contexts = (raw[key] for key in _CONTEXT_KEYS if raw.get(key) is not None)
    values["max_position_embeddings"] = next(contexts, _DEFAULT_CONTEXT)
    tied = ("tied_embeddings", "tie_word_embeddings")
    values["tie_word_embeddings"] = any(bool(raw.get(key)) for key in tied)
    if raw.get("head_dim") is not None:
        values["head_dim"] = raw["head_dim"]
    return values


def their_names(raw: Mapping[str, Any]) -> dict[str, str]:
    """By the names of config.json, those that this params.json has, where they differ."""
    if "dim" not in raw:
        return {}
    return _NAMES | {ours: f"moe.{theirs}" for ours, theirs in _EXPERT_NAMES.items()}


def stored_dtype(directory: Path) -> str:
    """Torch's name of the dtype that the embedding has, or else the first tensor.

    Raises:
        CheckpointError: no weights here, or no floats.
    """
    entries = read_raw_headers(directory)
    key = "tok_embeddings.weight"
    if key not in entries:
        key = next(iter(entries), "")
    if not key:
        raise CheckpointError(f"{directory}: its weight files hold no tensor")
    entry = entries[key]
    if entry.dtype not in _DTYPES:
        raise CheckpointError(
            f"{entry.file}: {key}: dtype is {entry.dtype}; one of {', '.join(_DTYPES)} is needed"
        )
    return _DTYPES[entry.dtype]


def special_tokens(directory: Path) -> dict[str, int]:
    """BOS and EOS under their names in config.json."""
    bos, eos = _BOS_ID, _EOS_ID
    if (directory / TOKENIZER_FILE).exists():
        tokenizer = Tokenizer.from_dir(directory)
        bos, eos = tokenizer.bos_id, tokenizer.eos_id
    return {"bos_token_id": bos, "eos_token_id": eos}


def _given(values: Mapping[str, Any], key: str, prefix: str = "") -> Any:
    if values.get(key) is None:
        raise ParamsError(f"{prefix}{key} is missing")
    return values[key]


def _window(raw: Mapping[str, Any]) -> Any:
    """The sliding window, which some files have as a text."""
    window = raw.get("sliding_window")
    if isinstance(window, str) and window.isdecimal():
        return int(window)
    return window
