"""How many parameters a model has, what each role holds, and which topologies would fit.

From the model's shape alone: no weights are read, and planning needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.config import ModelConfig
from model.kv_size import DTYPE_BYTES, GPU_CACHE_SHARE, block_bytes, blocks_in_sight
from model.ranks import matrix_name
from model.weights import (
    EMBED_KEY,
    HEAD_KEY,
    SCORE_KEY,
    attention_shapes,
    dense_keys,
    expected_shapes,
    expert_keys,
    layer_prefix,
)

StoredBytes = Callable[[str], int]

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
    expert: int  # the largest expert of a layer; with low-rank ones they differ
    by_expert: tuple[int, ...]  # each expert in all layers

    @property
    def all_experts(self) -> int:
        """Every expert in every layer."""
        return sum(self.by_expert)

    def expert_actor(self, num_expert: int) -> int:
        """Of so many expert actors the one with the most, if it had the largest experts."""
        most = math.ceil(len(self.by_expert) / num_expert)
        return sum(sorted(self.by_expert, reverse=True)[:most])


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
    config: ModelConfig,
    dtype: str,
    bits: int = 16,
    *,
    copies_tied_head: bool = False,
    stored: StoredBytes | None = None,
) -> RoleBytes:
    """What each role holds in a dtype, its matrices of so many bits (16: as the dtype has them).

    A head that is tied to the embedding is a copy where it is packed: always if quantized, else
    on CPUs, which `copies_tied_head` stands for. With `stored` (bytes on disk of a tensor with all
    that belongs to it) projections are held as they are stored: what bitsandbytes has quantized.
    """
    width = DTYPE_BYTES[dtype]

    def held(*matrices: tuple[str, int, int]) -> int:
        """Matrices (key, O, I) that multiply the same rows."""
        if stored is not None:
            return sum(stored(key) for key, _, _ in matrices)
        return _held_bytes(config, matrices, width, bits)

    hidden, inner = config.hidden_size, config.intermediate_size
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def feed_forward(w1: str, w3: str, w2: str) -> int:
        return held((w1, inner, hidden), (w3, inner, hidden)) + held((w2, hidden, inner))

    attention = 0
    for layer in range(config.num_layers):
        q, k, v, o = (f"{layer_prefix(layer)}.self_attn.{name}_proj.weight" for name in "qkvo")
        attention += held((q, q_width, hidden), (k, kv_width, hidden), (v, kv_width, hidden))
        attention += held((o, hidden, q_width))
        if config.is_dense:
            attention += feed_forward(*dense_keys(layer))
    shapes = attention_shapes(config)
    head = shapes.get(HEAD_KEY)
    if stored is not None and head is not None:
        attention += stored(HEAD_KEY)
    elif head is not None or (config.head.task == "generate" and (bits < 16 or copies_tied_head)):
        attention += _matrix_bytes(
            head or shapes[EMBED_KEY], width, bits if bits == 16 else _HEAD_BITS
        )
    plain = [
        math.prod(shape)
        for key, shape in shapes.items()
        if not any(part in key for part in (".self_attn.", ".mlp.", HEAD_KEY, SCORE_KEY))
    ]
    score = 4 * math.prod(shapes.get(SCORE_KEY, (0,)))  # held in fp32
    by_layer = [
        [feed_forward(*expert_keys(config, layer, expert)) for expert in range(config.num_experts)]
        for layer in range(config.num_layers)
    ]
    return RoleBytes(
        attention + score + width * sum(plain),
        max((one for layer in by_layer for one in layer), default=0),
        tuple(map(sum, zip(*by_layer, strict=True))),
    )


def kv_token_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of keys and values of one token in all layers."""
    return block_bytes(config, 1, dtype)


def kv_tokens_held(config: ModelConfig, num_tokens: int, block_size: int) -> int:
    """How many of a sequence's tokens the cache holds: those its sliding window reaches."""
    if config.sliding_window is None:
        return num_tokens
    return min(num_tokens, blocks_in_sight(config.sliding_window, 1, block_size) * block_size)


def topologies(config: ModelConfig, dtype: str, memory_bytes: int, roles: RoleBytes) -> list[Fit]:
    """Every number of expert actors, each actor on a device with so much memory.

    More attention actors take a device like the first each, and bring as much room for the KV
    cache. Weights may take 90 % of a device, and the cache takes 80 % of what they leave, as on
    GPUs; less than 2048 tokens of it (or the model's context) do not count as room.
    """
    per_token = kv_token_bytes(config, dtype)
    needed = kv_tokens_held(config, min(_LEAST_KV_TOKENS, config.max_position_embeddings), 1)
    found = []
    for num_expert in range(config.num_experts + 1):
        attention = roles.attention + (0 if num_expert else roles.all_experts)
        expert_actor = roles.expert_actor(num_expert) if num_expert else 0
        kv_tokens = max(0, int((memory_bytes - attention) * GPU_CACHE_SHARE)) // per_token
        room = memory_bytes * _WEIGHTS_SHARE
        fits = max(attention, expert_actor) <= room and kv_tokens >= needed
        found.append(Fit(num_expert, attention, expert_actor, kv_tokens, fits))
    return found


def _held_bytes(
    config: ModelConfig, matrices: Sequence[tuple[str, int, int]], width: int, bits: int
) -> int:
    """Dense matrices together, and the two factors of each that has a rank."""
    factors = [
        shape
        for key, outputs, inputs in matrices
        if (rank := config.ranks.get(matrix_name(key))) is not None
        for shape in ((rank, inputs), (outputs, rank))
    ]
    dense = [one for one in matrices if matrix_name(one[0]) not in config.ranks]
    together = [(sum(outputs for _, outputs, _ in dense), dense[0][2])] if dense else []
    return sum(_matrix_bytes(shape, width, bits) for shape in (*together, *factors))


def _matrix_bytes(shape: tuple[int, ...], width: int, bits: int) -> int:
    """Of a matrix [O, I]; rounded, its numbers and their scales."""
    outputs, inputs = shape
    if bits == 16:
        return outputs * inputs * width
    groups = 1 if bits == 8 else math.ceil(inputs / _INT4_GROUP)
    return math.ceil(outputs * inputs * bits / 8) + _SCALE_BYTES * outputs * groups
