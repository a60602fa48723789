"""Keys and values of every cached token, in blocks that sequences own by block table.

Shape suffixes: L layers, N blocks, S slots (block * block_size + offset), G key-value heads,
J the heads of the keys and then of the values (2 G), d head dimension, T rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.config import ModelConfig
from model.host_memory import zeros


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
        slots = num_blocks * block_size
        # Zeros, not empty: a padded read weighs stale slots by 0, and 0 * NaN is NaN.
        shape = (config.num_layers, slots, 2 * config.num_kv_heads, config.head_dim)
        self._kv_LSJd = zeros(shape, dtype, device)

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole cache."""
        return self._kv_LSJd.numel() * self._kv_LSJd.element_size()

    def layer(self, layer: int) -> torch.Tensor:
        """Return one layer's storage, [S, J, d]: for kernels that find the slots themselves."""
        return self._kv_LSJd[layer]

    def write(self, layer: int, slots_T: torch.Tensor, kv_TJd: torch.Tensor) -> None:
        """Store the rows' keys and values at their slots."""
        self._kv_LSJd[layer].index_copy_(0, slots_T, kv_TJd)

    def clear(self, block_ids: Sequence[int]) -> None:
        """Zero blocks that may hold NaN or infinity, before another sequence gets them."""
        blocks = torch.tensor(block_ids, device=self._kv_LSJd.device)
        for layer_SJd in self._kv_LSJd:
            self._blocks(layer_SJd).index_fill_(0, blocks, 0)

    def gather(self, layer: int, blocks_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (keys, values) of B block tables of N blocks each, [B, N * block_size, G, d]."""
        num_sequences, num_blocks = blocks_BN.shape
        kv = self._blocks(self._kv_LSJd[layer]).index_select(0, blocks_BN.reshape(-1))
        kv_BSJd = kv.view(num_sequences, num_blocks * self.block_size, *self._kv_LSJd.shape[2:])
        keys_BSGd, values_BSGd = kv_BSJd.chunk(2, dim=2)
        return keys_BSGd, values_BSGd

    def _blocks(self, one_layer_SJd: torch.Tensor) -> torch.Tensor:
        return one_layer_SJd.view(self.num_blocks, -1)
