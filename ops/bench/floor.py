"""What a step cannot beat: the weights it reads and the products it computes, as this machine can.

A decode step reads weights, so memory bandwidth bounds it; a prompt multiplies by them, so the
rate of matrix products does.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import Protocol

import torch

from model.config import ModelConfig
from model.weights import EMBED_KEY, attention_shapes, expected_shapes

BANDWIDTH_METHOD = (
    "best of 5 passes of torch.sum over 512 MiB of int64, in as many threads as the model"
)
_BUFFER_BYTES = 512 * 2**20  # far beyond any cache
_PASSES = 5

MATMUL_METHOD = (
    "best torch.matmul of square matrices of 1024, 2048 and 4096, in the model's dtype or float32, "
    "whichever torch multiplies faster at 256, in as many threads as the model"
)
_SIZES = (1024, 2048, 4096)
_TRIAL_SIZE = 256  # without instructions for bf16 torch would take minutes for the largest
_SIZE_S = 0.25  # each size is repeated for so long


def decode_step_bytes(config: ModelConfig, rows: int, dtype: torch.dtype, bits: int = 16) -> int:
    """Bytes of weights that a decode step of so many rows reads, the KV cache left out.

    With 8 or 4 `bits`, the matrices of attention, experts and dense blocks have so many and the
    head has 8; scales are left out.

    Attention, norms, gates (or dense blocks) and head once, an embedding row each, the experts hit:
    top_k a layer for one row, E (1 - (1 - top_k/E)^rows) expected for more under even routing.
    Matrices that are stored as factors count with these; experts that differ by their mean.
    """
    sizes = {key: math.prod(shape) for key, shape in attention_shapes(config).items()}
    if not config.tie_word_embeddings:  # where it is tied, the head reads the whole table
        del sizes[EMBED_KEY]
    experts = config.num_experts
    hit = experts * (1 - (1 - config.top_k / experts) ** rows) if experts else 0.0
    expert = _mean_expert(config)
    here = sum(size for key, size in sizes.items() if ".self_attn." in key or ".mlp." in key)
    quantizable = here + round(config.num_layers * hit * expert)
    head = config.vocab_size * config.hidden_size
    others = sum(sizes.values()) - here - head + rows * config.hidden_size
    if bits == 16:
        return (others + head + quantizable) * dtype.itemsize
    return others * dtype.itemsize + head + quantizable * bits // 8


def _mean_expert(config: ModelConfig) -> float:
    """Weights of one expert in one layer, or of a dense model's block."""
    if not config.ranks:
        return 3 * config.hidden_size * config.intermediate_size
    parts = (".experts.", ".mlp.")
    sizes = [
        math.prod(shape)
        for key, shape in expected_shapes(config).items()
        if any(part in key for part in parts)
    ]
    return sum(sizes) / (config.num_layers * max(1, config.num_experts))


def prompt_flops(config: ModelConfig, tokens: int) -> int:
    """Multiplications and additions that one prompt needs up to its first output token.

    Twice the parameters of every product with a weight: q, k, v, o, gate and top_k experts for
    each token, the head for the last. Attention: scores and values over all earlier tokens in
    the window and the token itself. Norms, softmax and the rest are left out.
    """
    hidden, q_width = config.hidden_size, config.num_heads * config.head_dim
    attention = sum(
        math.prod(shape) for key, shape in attention_shapes(config).items() if ".self_attn." in key
    )
    layers = attention + config.num_layers * (
        config.num_experts * hidden + (config.top_k or 1) * _mean_expert(config)
    )
    window = min(config.sliding_window or tokens, tokens)
    pairs = window * (window + 1) // 2 + (tokens - window) * window
    return (
        2 * tokens * round(layers)
        + 4 * pairs * config.num_layers * q_width
        + 2 * config.vocab_size * hidden
    )


class Floor(Protocol):
    """What bounds one figure: so much of a resource for so many tokens, and its rate here."""

    figure: str  # the tokens per second that it bounds
    rate_key: str  # of the measured rate in the results, in 10^9 a second
    cost_key: str  # of the cost in the results
    method: tuple[str, str]  # key and text in the config

    def measure(self) -> float:
        """The resource per second, as this process gets it now."""
        ...

    def cost(self, streams: int) -> int:
        """What so many streams take of it."""
        ...

    def tokens(self, streams: int) -> int:
        """The tokens that they get for it."""
        ...


class DecodeFloor:
    """A step of all streams reads weights once and makes a token of each."""

    figure = "decode_tok_s"
    rate_key = "read_gb_s"
    cost_key = "decode_step_bytes"
    method = ("read_bandwidth", BANDWIDTH_METHOD)

    def __init__(self, config: ModelConfig, dtype: torch.dtype, bits: int) -> None:
        self._config = config
        self._dtype = dtype
        self._bits = bits
        self._data = torch.ones(_BUFFER_BYTES // 8, dtype=torch.int64)

    def measure(self) -> float:
        """Bytes per second, in as many threads as torch has now.

        Integer sums, since they cost next to nothing beside the reading; the best pass, so that
        what disturbs the machine does not lower the floor that others are held against.
        """
        best_s = math.inf
        for _ in range(_PASSES):
            began_s = perf_counter()
            torch.sum(self._data)
            best_s = min(best_s, perf_counter() - began_s)
        return _BUFFER_BYTES / best_s

    def cost(self, streams: int) -> int:
        """Bytes of one step."""
        return decode_step_bytes(self._config, streams, self._dtype, self._bits)

    def tokens(self, streams: int) -> int:
        """One for each stream."""
        return streams


class PrefillFloor:
    """A prompt of each stream is multiplied by the weights."""

    figure = "prefill_tok_s"
    rate_key = "matmul_gflop_s"
    cost_key = "prompt_flops"
    method = ("matmul_rate", MATMUL_METHOD)

    def __init__(self, config: ModelConfig, dtype: torch.dtype, prompt_tokens: int) -> None:
        self._config = config
        self._prompt_tokens = prompt_tokens
        self._dtypes = {dtype, torch.float32}

    def measure(self) -> float:
        """Operations per second, in as many threads as torch has now."""
        fastest = max(self._dtypes, key=lambda dtype: _matmul_rate(_TRIAL_SIZE, dtype))
        return max(_matmul_rate(size, fastest) for size in _SIZES)

    def cost(self, streams: int) -> int:
        """Operations of all prompts."""
        return streams * prompt_flops(self._config, self._prompt_tokens)

    def tokens(self, streams: int) -> int:
        """All of the prompts."""
        return streams * self._prompt_tokens


def _matmul_rate(size: int, dtype: torch.dtype) -> float:
    a, b = (torch.ones(size, size, dtype=dtype) for _ in range(2))
    best_s, until_s = math.inf, perf_counter() + _SIZE_S
    while best_s == math.inf or perf_counter() < until_s:
        began_s = perf_counter()
        torch.matmul(a, b)
        best_s = min(best_s, perf_counter() - began_s)
    return 2 * size**3 / best_s
