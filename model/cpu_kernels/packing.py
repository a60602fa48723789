"""Packing of rows by the compiled library: what `RowPacker` does, in one call.

Not that numpy were slow; but after each wait for the experts a core begins with cold caches, and
numpy's many small calls take three times what they take in a loop.
Shape suffixes: T rows, D hidden, K experts per token, J ranks a row can go to at most.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from model.cpu_kernels.binary import load_binary
from model.row_message import RowMessage
from model.row_packing import PackedRows, RowPacker

_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64
_SIGNATURE: list[Any] = (
    [_POINTER, _INT64]
    + [_POINTER] * 3
    + [_INT64] * 2
    + [_POINTER, _INT64]
    + [_POINTER] * 3
    + [_INT64] * 2
)


class KernelRowPacker(RowPacker):
    """Packs rows that lie on the host."""

    def __init__(
        self, library: ctypes.CDLL, ranks: Sequence[int], most_ranks: int, nothing: int
    ) -> None:
        super().__init__(ranks, most_ranks, nothing)
        self._pack = library.windrose_pack_rows
        self._pack.argtypes, self._pack.restype = _SIGNATURE, None
        self._num_ranks = len(ranks)
        self._ranks = (_INT64 * len(ranks))(*ranks)
        self._counts = (_INT64 * len(ranks))()
        self._messages = _POINTER * len(ranks)

    def pack(
        self,
        x_TD: torch.Tensor,
        ids_TK: np.ndarray,
        weights_TK: np.ndarray,
        holder_TK: np.ndarray,
        messages: Sequence[RowMessage],
    ) -> PackedRows:
        """Fill every rank's message, with no rows where it gets none."""
        x_TD = x_TD.contiguous()
        rows, top_k = ids_TK.shape
        places_JT = torch.empty(self._most_ranks, rows, dtype=torch.int64)
        self._pack(
            x_TD.data_ptr(),
            x_TD.shape[1] * x_TD.element_size(),
            _address(ids_TK),
            _address(weights_TK),
            _address(holder_TK),
            rows,
            top_k,
            self._ranks,
            self._num_ranks,
            self._messages(*[message.address for message in messages]),
            self._counts,
            places_JT.data_ptr(),
            self._most_ranks,
            self._nothing,
        )
        return PackedRows(list(self._counts), places_JT)


def _address(array: np.ndarray) -> int:
    assert array.flags.c_contiguous
    address: int = array.__array_interface__["data"][0]
    return address


def row_packer(
    ranks: Sequence[int], most_ranks: int, nothing: int, device: torch.device
) -> RowPacker:
    """The compiled one where there is a library and rows lie on the host."""
    library = load_binary() if device.type == "cpu" else None
    if library is None:
        return RowPacker(ranks, most_ranks, nothing)
    return KernelRowPacker(library, ranks, most_ranks, nothing)
