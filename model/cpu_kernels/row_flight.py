"""What `RowFlight` does, by the compiled library: in two calls.

Not that Python, numpy and torch were slow; but after each wait for the experts a core begins with
cold caches, and many small calls take several times what they take in a loop.
Shape suffixes: T rows, D hidden, K experts per token, J ranks a row can go to at most.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from model.cpu_kernels.binary import load_binary
from model.exchange import HEAD_BYTES, RESULT_TAG, ROWS_TAG, Exchange, Message, Sockets
from model.row_flight import RowFlight
from model.row_message import RowShape
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
        ("files", _POINTER),
        ("moved", _POINTER),
        ("sent_bytes", _INT64),
        ("arrived_s", ctypes.c_double),
    )


class KernelRowFlight(RowFlight):
    """Rows that lie on the host.

    Over sockets a call packs and sends, and another receives and adds up, as long as the kernel
    takes whole messages; what it leaves of one goes by the exchange's own calls.
    """

    def __init__(self, library: ctypes.CDLL, ranks: Sequence[int], shape: RowShape) -> None:
        super().__init__(ranks, shape)
        num_ranks = len(ranks)
        self._counts = (_INT64 * num_ranks)()
        self._size = torch.Size((0, shape.hidden))
        self._places_J = torch.empty(self._nothing, dtype=torch.int64)
        self._adds_bf16 = shape.dtype == torch.bfloat16
        self._own_ranks = (_INT64 * num_ranks)(*ranks)
        self._addresses = (_POINTER * num_ranks)(*[message.address for message in self.messages])
        self._files = (ctypes.c_int32 * num_ranks)()
        self._moved = (_INT64 * num_ranks)()
        self._flight = _Flight(
            shape.row_bytes,
            shape.top_k,
            num_ranks,
            self._most_ranks,
            self._nothing,
            ctypes.addressof(self._own_ranks),
            ctypes.addressof(self._addresses),
            ctypes.addressof(self._counts),
            self._places_J.data_ptr(),
            self.sums_SD.data_ptr(),
            ctypes.addressof(self._files),
            ctypes.addressof(self._moved),
        )
        self._address = ctypes.addressof(self._flight)
        self._pack = library.windrose_pack_rows
        self._pack.argtypes, self._pack.restype = [_POINTER] * 6 + [_INT64], None
        self._send = library.windrose_send_rows
        self._send.argtypes, self._send.restype = [_POINTER] * 6 + [_INT64] * 2, _INT64
        self._add_up = library.windrose_add_up
        self._add_up.argtypes, self._add_up.restype = [_POINTER] * 2 + [_INT64], None
        self._receive = library.windrose_receive_sums
        self._receive.argtypes, self._receive.restype = [_POINTER] * 2 + [_INT64] * 2, _INT64

    def connect(self, exchange: Exchange) -> None:
        """Go on over this exchange; what was under way over another is forgotten."""
        super().connect(exchange)
        self._sockets = exchange.sockets
        if self._sockets is not None:
            self._files[:] = [self._sockets.file(index) for index in self._indices()]

    def _indices(self) -> list[int]:
        return [self._exchange.ranks.index(rank) for rank in self._ranks]

    def launch(
        self,
        layer: int,
        x_TD: torch.Tensor,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        split: RowSplit,
    ) -> int:
        """Send each rank its rows; returns how many bytes are sent. Raises PeerLost."""
        sockets = self._sockets
        if sockets is None:
            return super().launch(layer, x_TD, ids_TK, weights_TK, split)
        self._sends = []
        if sockets.num_unsent:  # which go first
            counts = self.pack(layer, x_TD, ids_TK, weights_TK, split)
            self._sends = self._send_whole(counts)
            return self._num_bytes(counts)
        if self._call(self._send, layer, x_TD, ids_TK, weights_TK, split, ROWS_TAG):
            self._sends = self._send_rests(sockets)
        return int(self._flight.sent_bytes)

    def land(self) -> tuple[torch.Tensor, float]:
        """Wait for all sums: see RowFlight. Raises PeerLost."""
        sockets = self._sockets
        if sockets is None:
            return super().land()
        # Only now are sums expected: what the kernel holds needs no room here before.
        if sockets.num_unsent:
            self._arrivals = self._expect(list(self._counts))
            return super().land()
        y_TD = torch.empty(self._size, dtype=torch.bfloat16) if self._adds_bf16 else None
        address = None if y_TD is None else y_TD.data_ptr()
        failed = self._receive(self._address, address, self._size[0], RESULT_TAG)
        if failed:
            raise sockets.lost(self._indices()[failed - 1], -self._moved[failed - 1])
        return self.add_up() if y_TD is None else y_TD, self._flight.arrived_s

    def _send_rests(self, sockets: Sockets) -> list[Message]:
        """Go on with the messages that the kernel did not take whole."""
        sends = []
        for index, moved, message, count in zip(
            self._indices(), self._moved, self.messages, self._counts, strict=True
        ):
            if moved < 0:
                raise sockets.lost(index, -moved)
            whole = message.whole(count)
            if moved < HEAD_BYTES + len(whole):
                sends.append(sockets.send_rest(whole, index, ROWS_TAG, moved))
        return sends

    def pack(
        self,
        layer: int,
        x_TD: torch.Tensor,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        split: RowSplit,
    ) -> Sequence[int]:
        """Fill every rank's message; returns how many rows each has, which may be none."""
        self._call(self._pack, layer, x_TD, ids_TK, weights_TK, split)
        return list(self._counts)

    def _call(
        self,
        function: Any,
        layer: int,
        x_TD: torch.Tensor,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        split: RowSplit,
        *tag: int,
    ) -> Any:
        """Call a function that packs."""
        x_TD = x_TD.contiguous()
        assert ids_TK.is_contiguous() and weights_TK.is_contiguous()
        self._size = x_TD.shape
        only_E, holders = split.only_holders(layer), None
        if not only_E:
            holders_TK = split.holders(layer, ids_TK.numpy())
            holders = holders_TK.ctypes.data
        return function(
            self._address,
            x_TD.data_ptr(),
            ids_TK.data_ptr(),
            weights_TK.data_ptr(),
            only_E,
            holders,
            self._size[0],
            *tag,
        )

    def add_up(self) -> torch.Tensor:
        """Once `sums_SD` has all that was packed: each row's own added up, in rank order, y_TD."""
        rows = self._size[0]
        if not self._adds_bf16:
            self._places_JT = self._places_J[: self._most_ranks * rows].view(self._most_ranks, rows)
            return super().add_up()
        y_TD = torch.empty(self._size, dtype=torch.bfloat16)
        self._add_up(self._address, y_TD.data_ptr(), rows)
        return y_TD


def make_row_flight(ranks: Sequence[int], shape: RowShape) -> RowFlight:
    """The compiled one where there is a library and rows lie on the host."""
    library = load_binary() if shape.device.type == "cpu" else None
    if library is None:
        return RowFlight(ranks, shape)
    return KernelRowFlight(library, ranks, shape)
