"""A layer's rows on their way: one message to each expert rank, and their sums when they are back.

Shape suffixes: T rows, D hidden, K experts per token, R expert ranks, S rows sent, rank after
rank, J ranks a row can go to at most: all, or K.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch

from model.exchange import Exchange, Message
from model.row_message import RowMessage, RowShape
from model.row_split import RowSplit

_MOST_KEPT = 256  # views of the sums


class RowFlight:
    """One dispatch that is under way, and its buffers; this one works by numpy and torch.

    Rows lie on any device, routing on the host. `sums_SD` is for what comes back, rank after rank;
    its last row stays 0: it is what a row adds that went to fewer than J ranks. Before the first
    launch, `connect` gives it an exchange.
    """

    def __init__(self, ranks: Sequence[int], shape: RowShape) -> None:
        """For messages to `ranks`, in that order."""
        self.messages = [RowMessage(shape) for _ in ranks]
        self._ranks = ranks
        self._most_ranks = min(shape.top_k, len(ranks))
        self._nothing = shape.max_rows * self._most_ranks
        self.sums_SD = torch.zeros(
            self._nothing + 1, shape.hidden, dtype=shape.dtype, device=shape.device
        )
        self._arrivals: list[Message] = []
        self._sends: list[Message] = []
        self._ranks_R11 = np.array(ranks, np.int64)[:, None, None]
        self._ends_R = np.arange(1, len(ranks) + 1)
        self._places_JT = torch.zeros(0, 0, dtype=torch.int64)
        self._kept: dict[tuple[int, int], torch.Tensor] = {}

    def connect(self, exchange: Exchange) -> None:
        """Go on over this exchange; what was under way over another is forgotten."""
        self._exchange = exchange

    def launch(
        self,
        layer: int,
        x_TD: torch.Tensor,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        split: RowSplit,
    ) -> int:
        """Send each rank its rows and expect their sums; returns how many bytes are sent.

        Raises:
            PeerLost: a rank is gone.
        """
        counts = self.pack(layer, x_TD, ids_TK, weights_TK, split)
        if self._exchange.one_message:  # gloo sends at once only what is expected already
            self._arrivals = self._expect(counts)
            self._sends = self._send_whole(counts)
        else:  # NCCL has one queue for each peer, where a send would wait behind its own answer
            self._sends = self._send_split(counts)
            self._arrivals = self._expect(counts)
        return self._num_bytes(counts)

    def land(self) -> tuple[torch.Tensor, float]:
        """Wait for all sums; returns them added up, y_TD, and the perf_counter() when all came.

        Raises:
            PeerLost: a rank is gone.
        """
        for message in self._arrivals:
            message.wait()
        arrived_s = perf_counter()
        y_TD = self.add_up()
        for message in self._sends:
            message.wait()
        return y_TD, arrived_s

    def _num_bytes(self, counts: Sequence[int]) -> int:
        pairs = zip(self.messages, counts, strict=True)
        return sum(message.parts(count).num_bytes for message, count in pairs)

    def _expect(self, counts: Sequence[int]) -> list[Message]:
        arrivals, start = [], 0
        for rank, count in zip(self._ranks, counts, strict=True):
            if count:
                arrivals.append(self._exchange.receive_result(self._sums(start, count), rank))
                start += count
        return arrivals

    def _send_whole(self, counts: Sequence[int]) -> list[Message]:
        return [
            self._exchange.send_rows(message.whole(count), rank)
            for rank, message, count in zip(self._ranks, self.messages, counts, strict=True)
        ]

    def _send_split(self, counts: Sequence[int]) -> list[Message]:
        sends = []
        for rank, message, count in zip(self._ranks, self.messages, counts, strict=True):
            parts = message.parts(count)
            sends.append(self._exchange.send_routing(parts.routing, rank))
            if count:
                sends.append(self._exchange.send_rows(parts.rows_ND, rank))
        return sends

    def _sums(self, start: int, count: int) -> torch.Tensor:
        """Where so many of the sums that come back are to lie, [N, D]."""
        kept = self._kept.get((start, count))
        if kept is None:
            if len(self._kept) == _MOST_KEPT:
                self._kept.clear()
            kept = self._kept[start, count] = self.sums_SD[start : start + count]
        return kept

    def pack(
        self,
        layer: int,
        x_TD: torch.Tensor,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        split: RowSplit,
    ) -> Sequence[int]:
        """Fill every rank's message; returns how many rows each has, which may be none."""
        ids, weights = ids_TK.cpu().numpy(), weights_TK.cpu().numpy()
        here_RTK = split.holders(layer, ids) == self._ranks_R11
        goes_RT = here_RTK.any(2)
        rank_S, row_S = goes_RT.nonzero()
        ends = rank_S.searchsorted(self._ends_R).tolist()
        ids_SK = np.where(here_RTK, ids, -1)[rank_S, row_S]
        weights_SK = weights.take(row_S, 0)
        counts, start = [], 0
        for message, end in zip(self.messages, ends, strict=True):
            counts.append(end - start)
            message.set_count(end - start)
            parts = message.parts(end - start)
            parts.host_ids_NK[:] = ids_SK[start:end]
            parts.host_weights_NK[:] = weights_SK[start:end]
            rows_N = torch.from_numpy(row_S[start:end]).to(x_TD.device)
            torch.index_select(x_TD, 0, rows_N, out=parts.rows_ND)
            start = end
        places_JT = np.full((self._most_ranks, len(ids)), self._nothing, np.int64)
        places_JT[goes_RT.cumsum(0)[rank_S, row_S] - 1, row_S] = np.arange(len(row_S))
        self._places_JT = torch.from_numpy(places_JT).to(x_TD.device)
        return counts

    def add_up(self) -> torch.Tensor:
        """Once `sums_SD` has all that was packed: each row's own added up, in rank order, y_TD."""
        first_T, *others = self._places_JT
        y_TD = self.sums_SD.index_select(0, first_T)
        for other_T in others:
            y_TD += self.sums_SD.index_select(0, other_T)
        return y_TD
