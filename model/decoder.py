"""The layers over the rows of one step, Mixtral's or Mistral's: only the feed-forward differs.

Shape suffixes: T rows, D hidden, V vocabulary, C sampled rows, R rows asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F

from model.attention import StepContext, decode_mask, prefill_mask
from model.config import ModelConfig
from model.decode_layers import DecodeStep, decode_layers
from model.decoder_weights import DecoderWeights
from model.feed_forward import FeedForward
from model.kv_cache import KVCache
from model.micro_batch import rows_in_order, split_batch
from model.rope import Rope
from model.step_batch import StepBatch


@dataclass(slots=True)
class _Flow:
    """A micro-batch on its way through the layers."""

    x_TD: torch.Tensor
    context: StepContext
    first_row: int  # of the step, counting those of the flows before
    decodes: DecodeStep | None  # where the library takes all its rows through a layer
    begun: Any = None  # what the feed-forward of the layer before is at


class Decoder:
    """The stack of layers."""

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        feed_forward: FeedForward,
        rope: Rope,
    ) -> None:
        self._config = config
        self._weights = weights
        self._feed_forward = feed_forward
        self._rope = rope
        self._decode_layers = decode_layers(config, weights)
        self.times = feed_forward.times
        self.layers_s = 0.0  # of the last step, from the first layer's begin to the last one's end

    def forward(self, batch: StepBatch, cache: KVCache, micro_batches: int = 1) -> torch.Tensor:
        """Run one step; returns the logits of the sampled rows, [C, V], in the model's dtype.

        Keys and values of all rows are in the cache afterwards. While the rows of one
        micro-batch are with the experts, the others have their turn.
        """
        x_TD, where_T = self._run(batch, cache, micro_batches)
        rows_C = batch.sample_rows_C
        if where_T is not None:
            rows_C = where_T.index_select(0, rows_C)
        assert self._weights.head is not None, "this model draws no tokens"
        return self._weights.head(self._weights.norm(x_TD.index_select(0, rows_C)))

    def hidden(
        self, batch: StepBatch, cache: KVCache, rows_R: torch.Tensor, micro_batches: int = 1
    ) -> torch.Tensor:
        """Run one step; returns these rows as they leave the last norm, [R, D]."""
        x_TD, where_T = self._run(batch, cache, micro_batches)
        if where_T is not None:
            rows_R = where_T.index_select(0, rows_R)
        return self._weights.norm(x_TD.index_select(0, rows_R))

    def _run(
        self, batch: StepBatch, cache: KVCache, micro_batches: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the layers; returns the rows, and where among them each of the step's is.

        None for the latter: they are in the step's order.
        """
        where_T: torch.Tensor | None = None
        if micro_batches == 1:
            flows = [self._flow(batch, cache, 0)]
        else:
            parts = split_batch(batch, micro_batches, cache.block_size)
            where_T = rows_in_order(parts)
            flows, first_row = [], 0
            for part in parts:
                flows.append(self._flow(part.batch, cache, first_row))
                first_row += part.batch.num_rows
        began_s = perf_counter()
        self._run_layers(flows, cache)
        self.layers_s = perf_counter() - began_s
        self._feed_forward.finish_step([flow.context.batch for flow in flows])
        x_TD = flows[0].x_TD if len(flows) == 1 else torch.cat([flow.x_TD for flow in flows])
        return x_TD, where_T

    def _flow(self, batch: StepBatch, cache: KVCache, first_row: int) -> _Flow:
        x_TD = F.embedding(batch.token_ids_T, self._weights.embedding_VD)
        context = self._context(batch, cache, x_TD.dtype)
        decodes = None
        if self._decode_layers is not None and not batch.prefills:
            decodes = DecodeStep(self._decode_layers, context, cache)
        return _Flow(x_TD, context, first_row, decodes)

    def _run_layers(self, flows: Sequence[_Flow], cache: KVCache) -> None:
        ffn = self._feed_forward
        for index, layer in enumerate(self._weights.layers):
            for flow in flows:
                if flow.decodes is not None:
                    added_TD = ffn.end(flow.begun) if index else None
                    x_TD, choice = flow.decodes.run(index, flow.x_TD, added_TD)
                    flow.begun = ffn.begin(index, x_TD, flow.first_row, choice)
                    continue
                if index:
                    flow.x_TD = flow.x_TD + ffn.end(flow.begun)
                x_TD = layer.attention(index, layer.input_norm(flow.x_TD), flow.context, cache)
                flow.x_TD = x_TD = flow.x_TD + x_TD
                flow.begun = ffn.begin(index, layer.ffn_norm(x_TD), flow.first_row)
        for flow in flows:
            flow.x_TD = flow.x_TD + ffn.end(flow.begun)

    def _context(self, batch: StepBatch, cache: KVCache, dtype: torch.dtype) -> StepContext:
        cos_T1d, sin_T1d = self._rope.tables(batch.positions_T)
        decode_mask_B11S: torch.Tensor | None = None
        prefill_masks: tuple[torch.Tensor | None, ...] = (None,) * len(batch.prefills)
        if self._weights.layers[0].attention.reads_masks:
            decode_mask_B11S, prefill_masks = self._masks(batch, cache, dtype)
        return StepContext(batch, cos_T1d, sin_T1d, decode_mask_B11S, prefill_masks)

    def _masks(
        self, batch: StepBatch, cache: KVCache, dtype: torch.dtype
    ) -> tuple[torch.Tensor | None, tuple[torch.Tensor | None, ...]]:
        window = self._config.sliding_window
        slots = batch.decode_blocks_BN.shape[1] * cache.block_size
        decode = (
            decode_mask(batch.decode_lengths_B, slots, window, dtype) if batch.num_decodes else None
        )
        device = batch.token_ids_T.device
        return decode, tuple(prefill_mask(chunk, window, dtype, device) for chunk in batch.prefills)
