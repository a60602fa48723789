"""What `RowInbox` does, over sockets by the compiled library: a call receives, another sends.

For why, see row_flight.py. Shape suffixes: N rows of one rank, R rows of all, D hidden.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch

from model.cpu_kernels.binary import load_binary
from model.exchange import HEAD_BYTES, RESULT_TAG, ROWS_TAG, Exchange, Message, Sockets
from model.row_inbox import RowInbox
from model.row_message import MessageParts, RowShape

_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64


class _Mail(ctypes.Structure):
    """`Mail` of messages.cpp."""

    _fields_ = (
        ("count", _INT64),
        ("files", _POINTER),
        ("bodies", _POINTER),
        ("sizes", _POINTER),
        ("moved", _POINTER),
    )


class _Batch:
    """A message with each attention rank, for the library; `sizes` 0: none with this one."""

    def __init__(self, files: list[int]) -> None:
        count = len(files)
        self._files = (ctypes.c_int32 * count)(*files)
        self.bodies = (_POINTER * count)()
        self.sizes = (_INT64 * count)()
        self.moved = (_INT64 * count)()
        arrays = (self._files, self.bodies, self.sizes, self.moved)
        self._mail = _Mail(count, *[ctypes.addressof(array) for array in arrays])
        self.address = ctypes.addressof(self._mail)


class KernelRowInbox(RowInbox):
    """Rows that lie on the host. What the kernel leaves of a message goes by the exchange."""

    def __init__(self, library: ctypes.CDLL, shape: RowShape) -> None:
        super().__init__(shape)
        self._receive = library.windrose_receive_messages
        self._send = library.windrose_send_messages
        for function in (self._receive, self._send):
            function.argtypes, function.restype = [_POINTER, _INT64], _INT64

    def connect(self, exchange: Exchange) -> None:
        """Go on over this exchange; what was under way over another is forgotten."""
        super().connect(exchange)
        self._sockets = sockets = exchange.sockets
        if sockets is not None:
            self._indices = [exchange.ranks.index(rank) for rank in self.messages]
            files = [sockets.file(index) for index in self._indices]
            self._arrivals, self._results = _Batch(files), _Batch(files)
            self._arrivals.bodies[:] = [message.address for message in self.messages.values()]

    def expect(self, most_rows: Mapping[int, int]) -> None:
        """Await a message of these attention ranks, of at most so many rows each."""
        if self._sockets is None:
            super().expect(most_rows)
        else:  # the kernel holds what comes early
            self._most_rows = most_rows

    def receive(self) -> dict[int, MessageParts]:
        """Wait for what is expected: see RowInbox. Raises PeerLost."""
        sockets = self._sockets
        if sockets is None:
            return super().receive()
        if sockets.num_unsent:
            super().expect(self._most_rows)
            return super().receive()
        for at, (rank, message) in enumerate(self.messages.items()):
            most = self._most_rows.get(rank)
            self._arrivals.sizes[at] = 0 if most is None else message.parts(most).num_bytes
        failed = self._receive(self._arrivals.address, ROWS_TAG)
        if failed:
            raise sockets.lost(self._indices[failed - 1], -self._arrivals.moved[failed - 1])
        return self._received()

    def answer(self, received: Mapping[int, MessageParts], y_RD: torch.Tensor) -> list[Message]:
        """Send every rank the sums of its rows, which lie in y_RD. Raises PeerLost."""
        sockets = self._sockets
        if sockets is None or sockets.num_unsent or not y_RD.is_contiguous():
            return super().answer(received, y_RD)
        results, address = self._results, y_RD.data_ptr()
        for at, rank in enumerate(self.messages):
            parts = received.get(rank)
            results.sizes[at] = 0 if parts is None else parts.num_rows * self._shape.row_bytes
            results.bodies[at] = address
            address += results.sizes[at]
        if self._send(results.address, RESULT_TAG):
            return self._send_rests(sockets, received, y_RD)
        return []

    def _send_rests(
        self, sockets: Sockets, received: Mapping[int, MessageParts], y_RD: torch.Tensor
    ) -> list[Message]:
        """Go on with the messages that the kernel did not take whole."""
        sends, start = [], 0
        for at, (rank, index) in enumerate(zip(self.messages, self._indices, strict=True)):
            if (parts := received.get(rank)) is None:
                continue
            moved, end = self._results.moved[at], start + parts.num_rows
            if moved < 0:
                raise sockets.lost(index, -moved)
            y_ND, start = y_RD[start:end], end
            if moved < HEAD_BYTES + y_ND.nbytes:
                sends.append(sockets.send_rest(y_ND, index, RESULT_TAG, moved))
        return sends


def make_row_inbox(shape: RowShape) -> RowInbox:
    """The compiled one where there is a library and rows lie on the host."""
    library = load_binary() if shape.device.type == "cpu" else None
    return RowInbox(shape) if library is None else KernelRowInbox(library, shape)
