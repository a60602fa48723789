"""How much the KV cache takes, from the model's shape alone: planning needs no torch."""

from __future__ import annotations

from model.config import ModelConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GPU_CACHE_SHARE = 0.8  # of what the weights leave of a GPU, where nothing else is asked for


def block_bytes(config: ModelConfig, block_size: int, dtype: str) -> int:
    """Bytes one block takes over all layers, keys and values."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return per_token * block_size * DTYPE_BYTES[dtype]


def blocks_in_sight(window: int, num_rows: int, block_size: int) -> int:
    """The most blocks that consecutive rows and all that their sliding window lets them see lie in.

    A row sees `window` positions, its own included. For one row: window / block_size + 2 at most.
    """
    span = window + num_rows - 1  # wherever it begins
    return (span - 2) // block_size + 2


def blocks_out_of_sight(window: int | None, next_position: int, block_size: int) -> int:
    """Leading blocks that neither the row at `next_position` nor any later one sees."""
    return 0 if window is None else max(0, next_position - window + 1) // block_size
