"""Grouped-query attention over the paged KV cache.

Shape suffixes: T rows, B decoding sequences, D hidden, H query heads, G key-value heads,
Q query heads per key-value head, d head dimension, S cached positions (padded).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from model.config import ModelConfig
from model.cpu_kernels.decode_layer import PackedMatrix
from model.cpu_kernels.in_use import kernels_for
from model.kv_cache import KVCache
from model.linear import Linear
from model.projection import StoredMatrix, project, project_together
from model.rope import rotate
from model.step_batch import PrefillChunk, StepBatch

_KERNEL_HEAD_DIM = 32  # the project's kernels take head dimensions that are multiples of it


@dataclass(frozen=True, slots=True)
class StepContext:
    """What every layer of one step shares: computed once, before the first layer."""

    batch: StepBatch
    cos_T1d: torch.Tensor
    sin_T1d: torch.Tensor
    decode_mask_B11S: torch.Tensor | None
    prefill_masks: tuple[torch.Tensor | None, ...]  # [rows, S]; None: causal from position 0


def decode_mask(
    lengths_B: torch.Tensor, num_slots: int, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """Additive mask [B, 1, 1, S] that lets each row see its own positions (and window) only."""
    where_1S = torch.arange(num_slots, device=lengths_B.device).unsqueeze(0)
    hidden_BS = where_1S >= lengths_B.unsqueeze(1)
    if window is not None:
        hidden_BS |= where_1S < (lengths_B - window).unsqueeze(1)
    mask_BS = torch.zeros(hidden_BS.shape, dtype=dtype, device=lengths_B.device)
    return mask_BS.masked_fill_(hidden_BS, float("-inf"))[:, None, None, :]


def prefill_mask(
    chunk: PrefillChunk, window: int | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """Additive mask [rows, S] for positions start.. of one sequence, None where plain causal."""
    end = chunk.start + chunk.num_rows
    if chunk.start == 0 and (window is None or end <= window):
        return None
    query_T1 = torch.arange(chunk.start, end, device=device).unsqueeze(1)
    key_1S = torch.arange(end, device=device).unsqueeze(0)
    hidden_TS = key_1S > query_T1
    if window is not None:
        hidden_TS |= key_1S <= query_T1 - window
    mask_TS = torch.zeros(hidden_TS.shape, dtype=dtype, device=device)
    return mask_TS.masked_fill_(hidden_TS, float("-inf"))


class Attention:
    """One layer's attention: q, k and v in one product, rotary, cache write, attend, project."""

    __slots__ = ("_group", "_head_dim", "_heads", "_kernels", "_kv_heads", "_o", "_qkv", "_window")

    def __init__(
        self,
        config: ModelConfig,
        q_OD: StoredMatrix,
        k_OD: StoredMatrix,
        v_OD: StoredMatrix,
        o_DO: StoredMatrix,
        *,
        bits: int = 16,
    ) -> None:
        self._heads = config.num_heads
        self._kv_heads = config.num_kv_heads
        self._group = config.num_heads // config.num_kv_heads
        self._head_dim = config.head_dim
        self._window = config.sliding_window
        self._kernels = kernels_for(q_OD) if config.head_dim % _KERNEL_HEAD_DIM == 0 else None
        self._qkv = project_together((q_OD, k_OD, v_OD), bits)
        self._o = project(o_DO, bits)

    @property
    def num_bytes(self) -> int:
        """Bytes of weights held."""
        return self._qkv.num_bytes + self._o.num_bytes

    @property
    def reads_masks(self) -> bool:
        """Whether the context's masks are needed; kernels follow positions instead."""
        return self._kernels is None

    @property
    def packed(self) -> tuple[PackedMatrix, PackedMatrix] | None:
        """The matrices of q, k and v together, and of o, where kernels can do all of it."""
        if self._kernels is None or not isinstance(self._qkv, Linear):
            return None
        qkv, o = self._qkv.packed, self._o.packed if isinstance(self._o, Linear) else None
        return None if qkv is None or o is None else (qkv, o)

    def __call__(
        self, layer: int, x_TD: torch.Tensor, context: StepContext, cache: KVCache
    ) -> torch.Tensor:
        """Return the layer's attention output, [T, D]; the rows' keys and values are cached."""
        batch = context.batch
        num_rows = x_TD.shape[0]
        heads_THd = self._qkv(x_TD).view(num_rows, -1, self._head_dim)
        query_THd, kv_TJd = heads_THd.split((self._heads, 2 * self._kv_heads), dim=1)
        if self._kernels is not None:
            self._kernels.rotate_and_store(
                heads_THd,
                context.cos_T1d,
                context.sin_T1d,
                cache.layer(layer),
                batch.slots_T,
                self._heads,
            )
        else:
            turning = self._heads + self._kv_heads
            rotate(heads_THd[:, :turning], context.cos_T1d, context.sin_T1d)
            cache.write(layer, batch.slots_T, kv_TJd)

        parts = []
        if batch.num_decodes:
            parts.append(self._decode(layer, query_THd[: batch.num_decodes], context, cache))
        for chunk, mask_TS in zip(batch.prefills, context.prefill_masks, strict=True):
            rows = slice(chunk.row, chunk.row + chunk.num_rows)
            if self._kernels is not None:
                parts.append(
                    self._kernels.prefill_attention(
                        query_THd[rows],
                        cache.layer(layer),
                        chunk.blocks_1N,
                        chunk.start,
                        cache.block_size,
                        self._window,
                    )
                )
                continue
            if mask_TS is None:
                keys, values = kv_TJd[rows].chunk(2, dim=1)
            else:
                cached_keys, cached_values = cache.gather(layer, chunk.blocks_1N)
                end = chunk.start + chunk.num_rows
                keys, values = cached_keys[0, :end], cached_values[0, :end]
            parts.append(self._prefill(query_THd[rows], keys, values, mask_TS))
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self._o(out)

    def _decode(
        self, layer: int, query_BHd: torch.Tensor, context: StepContext, cache: KVCache
    ) -> torch.Tensor:
        if self._kernels is not None:
            return self._kernels.decode_attention(
                query_BHd,
                cache.layer(layer),
                context.batch.decode_blocks_BN,
                context.batch.decode_lengths_B,
                cache.block_size,
                self._window,
            )
        keys_BSGd, values_BSGd = cache.gather(layer, context.batch.decode_blocks_BN)
        num_sequences = query_BHd.shape[0]
        # The heads that share a key-value head become its query rows: each key is read once.
        out_BGQd = F.scaled_dot_product_attention(
            query_BHd.reshape(num_sequences, self._kv_heads, self._group, self._head_dim),
            keys_BSGd.transpose(1, 2),
            values_BSGd.transpose(1, 2),
            attn_mask=context.decode_mask_B11S,
        )
        return out_BGQd.reshape(num_sequences, -1)

    def _prefill(
        self,
        query_THd: torch.Tensor,
        keys_SGd: torch.Tensor,
        values_SGd: torch.Tensor,
        mask_TS: torch.Tensor | None,
    ) -> torch.Tensor:
        out_1HTd = F.scaled_dot_product_attention(
            query_THd.transpose(0, 1).unsqueeze(0),
            keys_SGd.transpose(0, 1).unsqueeze(0),
            values_SGd.transpose(0, 1).unsqueeze(0),
            attn_mask=mask_TS,
            is_causal=mask_TS is None,
            enable_gqa=self._group > 1,
        )
        return out_1HTd[0].transpose(0, 1).reshape(query_THd.shape[0], -1)
