"""How much the KV cache takes, from the model's shape alone: planning needs no torch."""

from __future__ import annotations

from model.config import ModelConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def block_bytes(config: ModelConfig, block_size: int, dtype: str) -> int:
    """Bytes one block takes over all layers, keys and values."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return per_token * block_size * DTYPE_BYTES[dtype]
