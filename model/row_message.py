"""The message that carries rows to an expert rank, as bytes in one preallocated buffer.

Layout: count int32, padding to 16 | ids int32 [count, K] | weights fp32 [count, K] | padding
to 16 | rows [count, D]. An id of -1 marks a choice that another rank serves.
Shape suffixes: N rows in the message, D hidden, K experts per token.
"""

from __future__ import annotations

import torch

_ALIGN = 16


class RowMessage:
    """A buffer for up to `max_rows` rows. Routing lies on the host; rows lie on `device`.

    On CPU both share one buffer, so one send carries them; on GPU they are two.
    """

    def __init__(
        self, max_rows: int, hidden: int, top_k: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.max_rows = max_rows
        self._hidden = hidden
        self._top_k = top_k
        self._dtype = dtype
        self._row_bytes = hidden * dtype.itemsize
        self._shared = device.type == "cpu"
        routing_bytes = self._routing_bytes(max_rows)
        rows_bytes = max_rows * self._row_bytes
        host_bytes = routing_bytes + (rows_bytes if self._shared else 0)
        self._host = torch.zeros(host_bytes, dtype=torch.uint8)
        self._rows = (
            self._host
            if self._shared
            else torch.zeros(rows_bytes, dtype=torch.uint8, device=device)
        )

    def _routing_bytes(self, count: int) -> int:
        raw = _ALIGN + count * self._top_k * 8
        return -(-raw // _ALIGN) * _ALIGN

    @property
    def count(self) -> int:
        """Rows in the message, as its header says."""
        return int(self._host[:4].view(torch.int32).item())

    def set_count(self, count: int) -> None:
        """Begin a message of `count` rows."""
        assert 0 <= count <= self.max_rows
        self._host[:4].view(torch.int32).fill_(count)

    def ids(self, count: int) -> torch.Tensor:
        """View of the expert ids, int32 [N, K], on the host."""
        size = count * self._top_k * 4
        return self._host[_ALIGN : _ALIGN + size].view(torch.int32).view(count, self._top_k)

    def weights(self, count: int) -> torch.Tensor:
        """View of the expert weights, fp32 [N, K], on the host."""
        size = count * self._top_k * 4
        start = _ALIGN + size
        return self._host[start : start + size].view(torch.float32).view(count, self._top_k)

    def rows(self, count: int) -> torch.Tensor:
        """View of the rows, [N, D] in the model's dtype, on the device."""
        start = self._routing_bytes(count) if self._shared else 0
        flat = self._rows[start : start + count * self._row_bytes]
        return flat.view(self._dtype).view(count, self._hidden)

    def whole(self, count: int) -> torch.Tensor:
        """Routing and rows of `count` rows as one message (CPU only)."""
        assert self._shared
        return self._host[: self._routing_bytes(count) + count * self._row_bytes]

    def routing(self, count: int) -> torch.Tensor:
        """Only the routing of `count` rows, on the host."""
        return self._host[: self._routing_bytes(count)]
