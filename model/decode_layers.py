"""Decoding rows through the layers by the compiled library, a call a layer up to its experts.

The same bits as `Attention`, `RMSNorm` and `Gate` give in turn, which are its oracle.
Shape suffixes: T rows, D hidden.
"""

from __future__ import annotations

import torch

from model.attention import StepContext
from model.config import ModelConfig
from model.cpu_kernels.decode_layer import (
    DecodeLayers,
    DecodeRows,
    LayerAddresses,
    LayerShape,
    PackedMatrix,
)
from model.cpu_kernels.in_use import load_kernels
from model.decoder_weights import DecoderLayer, DecoderWeights
from model.feed_forward import Choice
from model.gate import Gate
from model.kv_cache import KVCache


class DecodeStep:
    """One step's rows, all of which decode."""

    def __init__(self, layers: DecodeLayers, context: StepContext, cache: KVCache) -> None:
        batch = context.batch
        self._layers = layers
        self._cache = cache
        self._context = context  # whose tensors the rows point at
        self._rows = DecodeRows(
            batch.num_decodes,
            context.cos_T1d.data_ptr(),
            context.sin_T1d.data_ptr(),
            batch.slots_T.data_ptr(),
            batch.decode_blocks_BN.data_ptr(),
            batch.decode_blocks_BN.stride(0),
            batch.decode_lengths_B.data_ptr(),
            cache.block_size,
        )

    def run(
        self, layer: int, x_TD: torch.Tensor, added_TD: torch.Tensor | None
    ) -> tuple[torch.Tensor, Choice]:
        """Add `added_TD`, what the layer before ended with, and attention to x_TD in place.

        Returns the rows for the feed-forward part, and the gate's choice.
        """
        storage = self._cache.layer(layer)
        normed_TD, *choice = self._layers.run(layer, self._rows, storage, x_TD, added_TD)
        return normed_TD, (choice[0], choice[1])


def decode_layers(config: ModelConfig, weights: DecoderWeights) -> DecodeLayers | None:
    """The layers for the library; None where it cannot do all of every layer."""
    kernels = load_kernels()
    gates: tuple[Gate | None, ...] = weights.gates or (None,) * len(weights.layers)
    addresses = [_addresses(*one) for one in zip(weights.layers, gates, strict=True)]
    packed = [one for one in addresses if one is not None]
    if kernels is None or len(packed) < len(addresses):
        return None
    shape = LayerShape(
        config.hidden_size,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.num_experts,
        config.top_k,
        config.sliding_window or 0,
        config.head_dim**-0.5,
        config.rms_norm_eps,
    )
    return DecodeLayers(kernels, packed, shape)


def _addresses(layer: DecoderLayer, gate: Gate | None) -> LayerAddresses | None:
    matrices = layer.attention.packed
    gate_matrix: PackedMatrix | None = None
    if gate is not None:
        gate_matrix = gate.packed
        if gate_matrix is None:
            return None
    if matrices is None:
        return None
    qkv, o = matrices
    return LayerAddresses(
        layer.input_norm.weight_D.data_ptr(),
        qkv.address,
        o.address,
        layer.ffn_norm.weight_D.data_ptr(),
        None if gate_matrix is None else gate_matrix.address,
        qkv.bits,
        o.bits,
    )
