"""What a layer does to decoding rows before its experts, in one call of the compiled library.

Not that the parts were slow: the calls between them, and the tensors that carry their results,
were 3 to 5 % of a step of the 0.8 B model at one row, 1 to 7 % at 32 (three runs in turns).
Shape suffixes: T rows, D hidden, K experts per token.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.cpu_kernels.library import CpuKernels

_POINTER, _INT64, _INT32, _FLOAT = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int32,
    ctypes.c_float,
)


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix as the kernels read it. Whoever made this keeps the memory."""

    address: int
    bits: int


class LayerAddresses(ctypes.Structure):
    """The weights of one layer; the C++ calls it Layer. `gate` null: a dense model."""

    _fields_ = (
        ("input_norm", _POINTER),
        ("qkv", _POINTER),
        ("o", _POINTER),
        ("ffn_norm", _POINTER),
        ("gate", _POINTER),
        ("qkv_bits", _INT32),
        ("o_bits", _INT32),
    )


class LayerShape(ctypes.Structure):
    """What all layers have in common; the C++ calls it Shape."""

    _fields_ = (
        ("width", _INT64),
        ("heads", _INT64),
        ("kv_heads", _INT64),
        ("head_dim", _INT64),
        ("experts", _INT64),
        ("top_k", _INT64),
        ("window", _INT64),
        ("scale", _FLOAT),
        ("eps", _FLOAT),
    )


class DecodeRows(ctypes.Structure):
    """One step's rows; the C++ calls it Rows. The tensors must live as long."""

    _fields_ = (
        ("count", _INT64),
        ("cos", _POINTER),
        ("sin", _POINTER),
        ("slots", _POINTER),
        ("tables", _POINTER),
        ("table_stride", _INT64),
        ("lengths", _POINTER),
        ("block_size", _INT64),
    )


class DecodeLayers:
    """The layers of a decoder, each up to its feed-forward part."""

    def __init__(
        self, kernels: CpuKernels, layers: Sequence[LayerAddresses], shape: LayerShape
    ) -> None:
        self._kernels = kernels
        self._layers = layers
        self._shape = shape
        self._by_shape = ctypes.byref(shape)
        self._by_layer = [ctypes.byref(layer) for layer in layers]

    def run(
        self,
        layer: int,
        rows: DecodeRows,
        layer_cache: torch.Tensor,
        x_TD: torch.Tensor,
        added_TD: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Add `added_TD` and attention to x_TD in place; bf16, contiguous.

        Returns the normed rows and the gate's choice: ids_TK int64, weights_TK fp32; K is 0
        where there is no gate.
        """
        count, top_k = x_TD.shape[0], self._shape.top_k
        normed_TD = torch.empty_like(x_TD)
        ids_TK = torch.empty(count, top_k, dtype=torch.int64)
        weights_TK = torch.empty(count, top_k)
        self._kernels.decode_layer(
            self._by_shape,
            self._by_layer[layer],
            ctypes.byref(rows),
            layer_cache.data_ptr(),
            x_TD.data_ptr(),
            None if added_TD is None else added_TD.data_ptr(),
            normed_TD.data_ptr(),
            ids_TK.data_ptr(),
            weights_TK.data_ptr(),
            self._kernels.num_threads,
        )
        return normed_TD, ids_TK, weights_TK
