"""Keys and values of every cached token, in blocks that sequences own by block table.

Shape suffixes: L layers, N blocks, S slots (block * block_size + offset), G key-value heads,
d head dimension, T rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.config import ModelConfig


class KVCache:
    """Paged storage (Kwon et al., arXiv 2309.06180): writes go to slots, reads gather blocks.

    Writing the same slot twice with the same token is idempotent, so a step can run again.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        shape = (config.num_layers, num_blocks * block_size, config.num_kv_heads, config.head_dim)
        # Zeros, not empty: a padded read weighs stale slots by 0, and 0 * NaN is NaN.
        self._keys_LSGd = torch.zeros(shape, dtype=dtype, device=device)
        self._values_LSGd = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole cache."""
        return 2 * self._keys_LSGd.numel() * self._keys_LSGd.element_size()

    def write(
        self, layer: int, slots_T: torch.Tensor, keys_TGd: torch.Tensor, values_TGd: torch.Tensor
    ) -> None:
        """Store the rows' keys and values at their slots."""
        self._keys_LSGd[layer].index_copy_(0, slots_T, keys_TGd)
        self._values_LSGd[layer].index_copy_(0, slots_T, values_TGd)

    def clear(self, block_ids: Sequence[int]) -> None:
        """Zero blocks that may hold NaN or infinity, before another sequence gets them."""
        blocks = torch.tensor(block_ids, device=self._keys_LSGd.device)
        for layer_SGd in (*self._keys_LSGd, *self._values_LSGd):
            self._blocks(layer_SGd).index_fill_(0, blocks, 0)

    def gather(self, layer: int, blocks_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (keys, values) of B block tables of N blocks each, [B, N * block_size, G, d]."""
        num_sequences, num_blocks = blocks_BN.shape
        flat = blocks_BN.reshape(-1)
        slots = num_blocks * self.block_size
        keys = self._blocks(self._keys_LSGd[layer]).index_select(0, flat)
        values = self._blocks(self._values_LSGd[layer]).index_select(0, flat)
        heads, head_dim = self._keys_LSGd.shape[2:]
        return (
            keys.view(num_sequences, slots, heads, head_dim),
            values.view(num_sequences, slots, heads, head_dim),
        )

    def _blocks(self, one_layer_SGd: torch.Tensor) -> torch.Tensor:
        return one_layer_SGd.view(self.num_blocks, -1)


def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes one block takes over all layers, keys and values."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return per_token * block_size * dtype.itemsize
