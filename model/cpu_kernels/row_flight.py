"""What `RowFlight` does, by the compiled library: in two calls.

Not that numpy and torch were slow; but after each wait for the experts a core begins with cold
caches, and many small calls take several times what they take in a loop.
Shape suffixes: T rows, D hidden, K experts per token, J ranks a row can go to at most.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from model.cpu_kernels.binary import load_binary
from model.row_flight import RowFlight
from model.row_split import RowSplit

_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64


class _Flight(ctypes.Structure):
    """`Flight` of dispatch.cpp."""

    _fields_ = (
        ("row_bytes", _INT64),
        ("top_k", _INT64),
        ("num_ranks", _INT64),
        ("most_ranks", _INT64),
        ("nothing", _INT64),
        ("ranks", _POINTER),
        ("messages", _POINTER),
        ("counts", _POINTER),
        ("places", _POINTER),
        ("sums", _POINTER),
    )


class KernelRowFlight(RowFlight):
    """Rows that lie on the host."""

    def __init__(
        self,
        library: ctypes.CDLL,
        ranks: Sequence[int],
        max_rows: int,
        hidden: int,
        top_k: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(ranks, max_rows, hidden, top_k, dtype, device)
        num_ranks = len(ranks)
        self._counts = (_INT64 * num_ranks)()
        self._shape = torch.Size((0, hidden))
        self._places_J = torch.empty(self._nothing, dtype=torch.int64)
        self._adds_bf16 = dtype == torch.bfloat16
        self._own_ranks = (_INT64 * num_ranks)(*ranks)
        self._addresses = (_POINTER * num_ranks)(*[message.address for message in self.messages])
        self._flight = _Flight(
            hidden * dtype.itemsize,
            top_k,
            num_ranks,
            self._most_ranks,
            self._nothing,
            ctypes.addressof(self._own_ranks),
            ctypes.addressof(self._addresses),
            ctypes.addressof(self._counts),
            self._places_J.data_ptr(),
            self.sums_SD.data_ptr(),
        )
        self._address = ctypes.addressof(self._flight)
        self._pack = library.windrose_pack_rows
        self._pack.argtypes, self._pack.restype = [_POINTER] * 6 + [_INT64], None
        self._add_up = library.windrose_add_up
        self._add_up.argtypes, self._add_up.restype = [_POINTER] * 2 + [_INT64], None

    def pack(
        self,
        layer: int,
        x_TD: torch.Tensor,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        split: RowSplit,
    ) -> Sequence[int]:
        """Fill every rank's message; returns how many rows each has, which may be none."""
        x_TD = x_TD.contiguous()
        assert ids_TK.is_contiguous() and weights_TK.is_contiguous()
        self._shape = x_TD.shape
        only_E, holders = split.only_holders(layer), None
        if not only_E:
            holders_TK = split.holders(layer, ids_TK.numpy())
            holders = holders_TK.ctypes.data
        self._pack(
            self._address,
            x_TD.data_ptr(),
            ids_TK.data_ptr(),
            weights_TK.data_ptr(),
            only_E,
            holders,
            len(x_TD),
        )
        return list(self._counts)

    def add_up(self) -> torch.Tensor:
        """Once `sums_SD` has all that was packed: each row's own added up, in rank order, y_TD."""
        rows = self._shape[0]
        if not self._adds_bf16:
            self._places_JT = self._places_J[: self._most_ranks * rows].view(self._most_ranks, rows)
            return super().add_up()
        y_TD = torch.empty(self._shape, dtype=torch.bfloat16)
        self._add_up(self._address, y_TD.data_ptr(), rows)
        return y_TD


def make_row_flight(
    ranks: Sequence[int],
    max_rows: int,
    hidden: int,
    top_k: int,
    dtype: torch.dtype,
    device: torch.device,
) -> RowFlight:
    """The compiled one where there is a library and rows lie on the host."""
    library = load_binary() if device.type == "cpu" else None
    if library is None:
        return RowFlight(ranks, max_rows, hidden, top_k, dtype, device)
    return KernelRowFlight(library, ranks, max_rows, hidden, top_k, dtype, device)
