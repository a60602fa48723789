"""The message that carries rows to an expert rank, as bytes in one preallocated buffer.

Layout: count int32, padding to 16 | ids int32 [count, K] | weights fp32 [count, K] | padding
to 16 | rows [count, D]. An id of -1 marks a choice that another rank serves, its weight says
nothing. Shape suffixes: N rows in the message, D hidden, K experts per token.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch

_ALIGN = 16
_MOST_KEPT = 256  # numbers of rows whose parts are laid out, before they are forgotten


@dataclass(frozen=True, slots=True)
class RowShape:
    """What all messages of a pipeline have in common."""

    max_rows: int  # of a message
    hidden: int
    top_k: int
    dtype: torch.dtype  # of the rows
    device: torch.device  # where rows lie

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return self.hidden * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class MessageParts:
    """Views of a message of N rows. `host_*` are the same memory, for numpy."""

    num_rows: int
    ids_NK: torch.Tensor  # int32, on the host
    weights_NK: torch.Tensor  # fp32, on the host
    rows_ND: torch.Tensor  # in the model's dtype, on the device
    routing: torch.Tensor  # what travels without the rows
    whole: torch.Tensor | None  # what travels where the rows are in the same buffer
    num_bytes: int  # of all that travels
    host_ids_NK: np.ndarray
    host_weights_NK: np.ndarray


class RowMessage:
    """A buffer for up to `shape.max_rows` rows. Routing lies on the host; rows lie on `device`.

    On CPU both share one buffer, so one send carries them; on GPU they are two. `address` is
    where the routing begins, for the compiled library, which knows the layout as well.
    """

    def __init__(self, shape: RowShape) -> None:
        self._shape = shape
        self._shared = shape.device.type == "cpu"
        routing_bytes = self._routing_bytes(shape.max_rows)
        rows_bytes = shape.max_rows * shape.row_bytes
        host_bytes = routing_bytes + (rows_bytes if self._shared else 0)
        self._host = torch.zeros(host_bytes, dtype=torch.uint8)
        self._rows = (
            self._host
            if self._shared
            else torch.zeros(rows_bytes, dtype=torch.uint8, device=shape.device)
        )
        self.address = self._host.data_ptr()
        self._count = ctypes.c_int32.from_address(self.address)  # of self._host
        self._kept: dict[int, MessageParts] = {}

    def _routing_bytes(self, count: int) -> int:
        raw = _ALIGN + count * self._shape.top_k * 8
        return -(-raw // _ALIGN) * _ALIGN

    @property
    def count(self) -> int:
        """Rows in the message, as its header says."""
        return self._count.value

    def set_count(self, count: int) -> None:
        """Begin a message of `count` rows."""
        assert 0 <= count <= self._shape.max_rows
        self._count.value = count

    def parts(self, count: int) -> MessageParts:
        """The parts of a message of `count` rows."""
        kept = self._kept.get(count)
        if kept is None:
            if len(self._kept) == _MOST_KEPT:
                self._kept.clear()
            kept = self._kept[count] = self._lay_out(count)
        return kept

    def _lay_out(self, count: int) -> MessageParts:
        shape = self._shape
        size = count * shape.top_k * 4
        end = self._routing_bytes(count)
        ids_NK = self._host[_ALIGN : _ALIGN + size].view(torch.int32).view(count, shape.top_k)
        weights = self._host[_ALIGN + size : _ALIGN + 2 * size].view(torch.float32)
        start = end if self._shared else 0
        rows = self._rows[start : start + count * shape.row_bytes]
        return MessageParts(
            num_rows=count,
            ids_NK=ids_NK,
            weights_NK=weights.view(count, shape.top_k),
            rows_ND=rows.view(shape.dtype).view(count, shape.hidden),
            routing=self._host[:end],
            whole=self._host[: end + count * shape.row_bytes] if self._shared else None,
            num_bytes=end + count * shape.row_bytes,
            host_ids_NK=ids_NK.numpy(),
            host_weights_NK=weights.view(count, shape.top_k).numpy(),
        )

    def ids(self, count: int) -> torch.Tensor:
        """View of the expert ids, int32 [N, K], on the host."""
        return self.parts(count).ids_NK

    def weights(self, count: int) -> torch.Tensor:
        """View of the expert weights, fp32 [N, K], on the host."""
        return self.parts(count).weights_NK

    def rows(self, count: int) -> torch.Tensor:
        """View of the rows, [N, D] in the model's dtype, on the device."""
        return self.parts(count).rows_ND

    def whole(self, count: int) -> torch.Tensor:
        """Routing and rows of `count` rows as one message (CPU only)."""
        whole = self.parts(count).whole
        assert whole is not None
        return whole

    def routing(self, count: int) -> torch.Tensor:
        """Only the routing of `count` rows, on the host."""
        return self.parts(count).routing
