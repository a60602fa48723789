"""The small files of a Hugging Face checkpoint, for weights that came without them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.tokenizer import TOKENIZER_FILE, Tokenizer
from model.tokenizer_json import tokenizer_json

# Of these a raw directory may have some; they are the same in both layouts.
_SAME_FILES = (
    TOKENIZER_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def hugging_face_config(config: ModelConfig) -> dict[str, Any]:
    """config.json in the keys of transformers 4, which transformers 5 reads too."""
    eos = config.eos_token_ids
    values: dict[str, Any] = {
        "architectures": ["MistralForCausalLM" if config.is_dense else "MixtralForCausalLM"],
        "model_type": "mistral" if config.is_dense else "mixtral",
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "sliding_window": config.sliding_window,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": config.dtype,
        "vocab_size": config.vocab_size,
    }
    if not config.is_dense:
        values |= {
            "num_experts_per_tok": config.top_k,
            "num_local_experts": config.num_experts,
            "output_router_logits": False,
        }
    return values


def write_small_files(source: Path, target: Path, config: ModelConfig) -> None:
    """config.json, and the tokenizer's files as far as `source` has what they are made of.

    Raises:
        ValueError: a tokenizer.model that is none.
    """
    write_json(target / "config.json", hugging_face_config(config))
    for name in _SAME_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    derived = ("tokenizer.json", "tokenizer_config.json")
    if (source / TOKENIZER_FILE).exists() and not any((source / one).exists() for one in derived):
        tokenizer = Tokenizer.from_dir(source)
        write_json(target / "tokenizer.json", tokenizer_json(tokenizer))
        write_json(target / "tokenizer_config.json", _tokenizer_config(tokenizer, config))


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Write it under another name first: it is there whole, or not at all."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(file)


def _tokenizer_config(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, Any]:
    """The special tokens, and Mistral's conventions; no chat template."""
    pieces = {i: piece for piece, i in tokenizer.control_ids.items()}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": pieces[tokenizer.bos_id],
        "eos_token": pieces[tokenizer.eos_id],
        "unk_token": pieces.get(tokenizer.unk_id),
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": config.max_position_embeddings,
        "tokenizer_class": "LlamaTokenizer",
    }
