"""What a decode step cannot beat: the bytes of the weights it reads, at the machine's bandwidth."""

from __future__ import annotations

import math
from time import perf_counter

import torch

from model.config import ModelConfig
from model.weights import EMBED_KEY, attention_shapes

BANDWIDTH_METHOD = (
    "best of 5 passes of torch.sum over 512 MiB of int64, in as many threads as the model"
)
_BUFFER_BYTES = 512 * 2**20  # far beyond any cache
_PASSES = 5


def decode_step_bytes(config: ModelConfig, rows: int, dtype: torch.dtype) -> int:
    """Bytes of weights that a decode step of so many rows reads, the KV cache left out.

    Attention, norms, gates and head once, an embedding row each, and the experts that are hit:
    top_k a layer for one row, E (1 - (1 - top_k/E)^rows) expected for more under even routing.
    """
    sizes = {key: math.prod(shape) for key, shape in attention_shapes(config).items()}
    if not config.tie_word_embeddings:  # where it is tied, the head reads the whole table
        del sizes[EMBED_KEY]
    experts = config.num_experts
    hit = experts * (1 - (1 - config.top_k / experts) ** rows)
    expert = 3 * config.hidden_size * config.intermediate_size
    numbers = (
        sum(sizes.values()) + rows * config.hidden_size + round(config.num_layers * hit * expert)
    )
    return numbers * dtype.itemsize


class ReadBandwidth:
    """Measures how fast this process can read memory, in as many threads as torch has now.

    Integer sums, since they cost next to nothing beside the reading; the best pass, so that
    what disturbs the machine does not lower the floor that others are held against.
    """

    def __init__(self) -> None:
        self._data = torch.ones(_BUFFER_BYTES // 8, dtype=torch.int64)

    def measure(self) -> float:
        """Bytes per second."""
        best_s = math.inf
        for _ in range(_PASSES):
            began_s = perf_counter()
            torch.sum(self._data)
            best_s = min(best_s, perf_counter() - began_s)
        return _BUFFER_BYTES / best_s
