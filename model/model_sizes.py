"""How many parameters a model has, what each role holds, and which topologies would fit.

From the model's shape alone: no weights are read, and planning needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.config import ModelConfig
from model.kv_size import DTYPE_BYTES, GPU_CACHE_SHARE, block_bytes, blocks_in_sight
from model.weights import (
    EMBED_KEY,
    HEAD_KEY,
    attention_shapes,
    dense_keys,
    expected_shapes,
    layer_prefix,
)

BITS = {"none": 16, "int8": 8, "int4": 4}  # by the name of a quantization
_HEAD_BITS = 8  # of a quantized model, whose head has no fewer
_INT4_GROUP = 128  # inputs that share a scale
_SCALE_BYTES = 4
_WEIGHTS_SHARE = 0.9  # of a device's memory; the rest is for rows, kernels and the runtime
_LEAST_KV_TOKENS = 2048  # with less room than that a topology does not count as one that fits


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of weights: all, and those a token meets (embedding included, as Mistral counts)."""

    total: int
    active: int


@dataclass(frozen=True, slots=True)
class RoleBytes:
    """Bytes of weights that a role holds, as its actor reports them, padding of kernels aside."""

    attention: int  # an attention actor, without experts; all of a dense model
    expert: int  # one expert in one layer
    all_experts: int  # every expert in every layer


@dataclass(frozen=True, slots=True)
class Fit:
    """What one device of each role holds with so many expert actors, and whether it has room."""

    num_expert: int
    attention_bytes: int  # with no expert actors, the experts too
    expert_actor_bytes: int  # the one with the most
    kv_tokens: int  # room of each attention actor's KV cache
    fits: bool


def count_parameters(config: ModelConfig) -> Parameters:
    """Weights of the model, in all and for one token."""
    total = sum(math.prod(shape) for shape in expected_shapes(config).values())
    if config.is_dense:
        return Parameters(total, total)
    outside = sum(math.prod(shape) for shape in attention_shapes(config).values())
    return Parameters(total, outside + (total - outside) * config.top_k // config.num_experts)


def role_bytes(
    config: ModelConfig, dtype: str, bits: int = 16, *, copies_tied_head: bool = False
) -> RoleBytes:
    """What each role holds in a dtype, its matrices of so many bits (16: as the dtype has them).

    A head that is tied to the embedding is a copy where it is packed: always if quantized, else
    on CPUs, which `copies_tied_head` stands for.
    """
    width = DTYPE_BYTES[dtype]
    shapes = attention_shapes(config)
    attention = 0
    for layer in range(config.num_layers):
        prefix = f"{layer_prefix(layer)}.self_attn"
        together = [shapes.pop(f"{prefix}.{name}_proj.weight") for name in "qkv"]
        joined = (sum(rows for rows, _ in together), together[0][1])
        attention += _matrix_bytes(joined, width, bits)
        attention += _matrix_bytes(shapes.pop(f"{prefix}.o_proj.weight"), width, bits)
        if config.is_dense:
            for key in dense_keys(layer):
                del shapes[key]
            attention += _feed_forward_bytes(config, width, bits)
    head = shapes.pop(HEAD_KEY, None)
    if head is None and (bits < 16 or copies_tied_head):
        head = shapes[EMBED_KEY]
    if head is not None:
        attention += _matrix_bytes(head, width, bits if bits == 16 else _HEAD_BITS)
    attention += width * sum(math.prod(shape) for shape in shapes.values())
    expert = 0 if config.is_dense else _feed_forward_bytes(config, width, bits)
    return RoleBytes(attention, expert, expert * config.num_layers * config.num_experts)


def kv_token_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of keys and values of one token in all layers."""
    return block_bytes(config, 1, dtype)


def kv_tokens_held(config: ModelConfig, num_tokens: int, block_size: int) -> int:
    """How many of a sequence's tokens the cache holds: those its sliding window reaches."""
    if config.sliding_window is None:
        return num_tokens
    return min(num_tokens, blocks_in_sight(config.sliding_window, 1, block_size) * block_size)


def topologies(config: ModelConfig, dtype: str, memory_bytes: int, bits: int = 16) -> list[Fit]:
    """Every number of expert actors, each actor on a device with so much memory.

    More attention actors take a device like the first each, and bring as much room for the KV
    cache. Weights may take 90 % of a device, and the cache takes 80 % of what they leave, as on
    GPUs; less than 2048 tokens of it (or the model's context) do not count as room.
    """
    roles = role_bytes(config, dtype, bits)
    per_token = kv_token_bytes(config, dtype)
    needed = kv_tokens_held(config, min(_LEAST_KV_TOKENS, config.max_position_embeddings), 1)
    found = []
    for num_expert in range(config.num_experts + 1):
        attention = roles.attention + (0 if num_expert else roles.all_experts)
        most = math.ceil(config.num_experts / num_expert) if num_expert else 0
        expert_actor = most * config.num_layers * roles.expert
        kv_tokens = max(0, int((memory_bytes - attention) * GPU_CACHE_SHARE)) // per_token
        room = memory_bytes * _WEIGHTS_SHARE
        fits = max(attention, expert_actor) <= room and kv_tokens >= needed
        found.append(Fit(num_expert, attention, expert_actor, kv_tokens, fits))
    return found


def _feed_forward_bytes(config: ModelConfig, width: int, bits: int) -> int:
    """w1 and w3, which are held together, and w2."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return _matrix_bytes((2 * inner, hidden), width, bits) + _matrix_bytes(
        (hidden, inner), width, bits
    )


def _matrix_bytes(shape: tuple[int, ...], width: int, bits: int) -> int:
    """Of a matrix [O, I]; rounded, its numbers and their scales."""
    outputs, inputs = shape
    if bits == 16:
        return outputs * inputs * width
    groups = 1 if bits == 8 else math.ceil(inputs / _INT4_GROUP)
    return math.ceil(outputs * inputs * bits / 8) + _SCALE_BYTES * outputs * groups
