"""Mistral's names and order of weights, and what they are in Hugging Face's checkpoints.

Two things differ besides names. RoPE turns neighbouring rows of a head's q and k there, and rows
half a head apart here. And the Mixtral release packs the experts of a layer into one matrix,
w1, w2 and w3 each [E * F, D], w2 transposed.
Shapes: E experts, F expert hidden, D hidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from model.config import ModelConfig
from model.shards import CheckpointError, TensorEntry
from model.weights import EMBED_KEY, HEAD_KEY, NORM_KEY

_OUTSIDE_LAYERS = {
    "tok_embeddings.weight": EMBED_KEY,
    "norm.weight": NORM_KEY,
    "output.weight": HEAD_KEY,
}
_IN_LAYERS = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "block_sparse_moe.gate.weight": "block_sparse_moe.gate.weight",
    "feed_forward.gate.weight": "block_sparse_moe.gate.weight",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"(?:feed_forward|block_sparse_moe)\.(experts\.\d+\.w[123]\.weight)")
_PACKED = re.compile(r"block_sparse_moe\.(w[123])")
_SERVED_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def present(raw: Mapping[str, TensorEntry], config: ModelConfig) -> dict[str, TensorEntry]:
    """The same tensors under the names that are served, each expert's on its own.

    What is of no model here keeps its name.

    Raises:
        CheckpointError: packed experts of another shape, or a tensor that is there twice.
    """
    found: dict[str, TensorEntry] = {}
    for key, entry in raw.items():
        for name, part in _parts(key, replace(entry, stored_key=key), config):
            if name in found:
                other = found[name]
                raise CheckpointError(
                    f"{part.file}: {key} and {other.stored_key} (in {other.file.name}) are one "
                    f"tensor, {name}"
                )
            found[name] = part
    return found


def raw_name(key: str, raw: Mapping[str, TensorEntry]) -> str:
    """What a served tensor that is missing would be called in files that hold these."""
    for theirs, ours in _OUTSIDE_LAYERS.items():
        if ours == key:
            return theirs
    match = _SERVED_LAYER.fullmatch(key)
    if match is None:
        return key
    prefix, name = f"layers.{match[1]}", match[2]
    block = "block_sparse_moe" if any("block_sparse_moe" in one for one in raw) else "feed_forward"
    if expert := _EXPERT.fullmatch(name):
        if any(_PACKED.search(one) for one in raw):
            return f"{prefix}.{block}.{expert[1].split('.')[2]}"
        return f"{prefix}.{block}.{expert[1]}"
    if "gate.weight" in name:
        return f"{prefix}.{block}.gate.weight"
    return next(f"{prefix}.{theirs}" for theirs, ours in _IN_LAYERS.items() if ours == name)


def _parts(key: str, entry: TensorEntry, config: ModelConfig) -> Iterator[tuple[str, TensorEntry]]:
    match = _LAYER.fullmatch(key)
    if match is None:
        yield _OUTSIDE_LAYERS.get(key, key), entry
        return
    prefix, name = f"model.layers.{match[1]}", match[2]
    if packed := _PACKED.fullmatch(name):
        for expert, part in enumerate(_experts(key, entry, config)):
            turned = replace(part, shape=part.shape[::-1], is_transposed=True)
            yield (
                f"{prefix}.block_sparse_moe.experts.{expert}.{packed[1]}.weight",
                turned if packed[1] == "w2" else part,
            )
    elif expert_match := _EXPERT.fullmatch(name):
        yield f"{prefix}.block_sparse_moe.{expert_match[1]}", entry
    elif name == "attention.wq.weight":
        yield f"{prefix}.{_IN_LAYERS[name]}", replace(entry, rotary_heads=config.num_heads)
    elif name == "attention.wk.weight":
        yield f"{prefix}.{_IN_LAYERS[name]}", replace(entry, rotary_heads=config.num_kv_heads)
    elif name in _IN_LAYERS:
        yield f"{prefix}.{_IN_LAYERS[name]}", entry
    else:
        yield key, entry


def _experts(key: str, entry: TensorEntry, config: ModelConfig) -> Iterator[TensorEntry]:
    """The rows of each expert in a packed matrix."""
    inner, hidden = config.intermediate_size, config.hidden_size
    packed = (config.num_experts * inner, hidden)
    if entry.shape != packed or config.is_dense:
        raise CheckpointError(
            f"{entry.file}: {key}: expected shape {list(packed)} ({config.num_experts} experts of "
            f"{inner}), found {list(entry.shape)}"
        )
    size_bytes = entry.size_bytes // config.num_experts
    for expert in range(config.num_experts):
        yield replace(
            entry,
            shape=(inner, hidden),
            offset_bytes=entry.offset_bytes + expert * size_bytes,
            size_bytes=size_bytes,
        )
