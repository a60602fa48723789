"""The exact dispatcher: only the rows a rank's experts need travel, in point-to-point messages.

Attention side here, expert side in `expert_server.py`; both follow from the step header and
from the count that each message carries, so no rank needs a collective.
Shape suffixes: T rows, D hidden, K experts per token, N rows for one rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from model.exchange import Exchange, Message
from model.placement import ExpertPlacement
from model.row_message import RowMessage
from model.row_split import RowSplit


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows that went to one rank, and where their sums will arrive."""

    rows_N: torch.Tensor
    sums_ND: torch.Tensor
    arrival: Message


@dataclass(frozen=True, slots=True)
class DispatchedRows:
    """One layer's rows on their way: which went where, and the sends to wait for."""

    x_TD: torch.Tensor
    parts: list[_Part]
    sends: list[Message]


class ExactDispatcher:
    """Attention side of the exact all-to-all; every expert rank gets one message per layer.

    Before the first dispatch, `attach` gives it an exchange.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        hidden: int,
        top_k: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._message_args = (max_rows, hidden, top_k, dtype, device)
        self._device = device
        self._messages: dict[int, RowMessage] = {}
        self._sums: dict[int, torch.Tensor] = {}

    def attach(self, exchange: Exchange, placement: ExpertPlacement) -> None:
        """Go on over this epoch's exchange, between two steps or two tries of one."""
        self._exchange = exchange
        ranks, (max_rows, hidden, _, dtype, device) = exchange.ranks.expert, self._message_args
        self._messages = {
            rank: self._messages.get(rank) or RowMessage(*self._message_args) for rank in ranks
        }
        self._sums = {
            rank: self._sums[rank]
            if rank in self._sums
            else torch.empty(max_rows, hidden, dtype=dtype, device=device)
            for rank in ranks
        }
        self.set_placement(placement)

    def set_placement(self, placement: ExpertPlacement) -> None:
        """Use another placement from the next dispatch on; call between steps only.

        Every expert needs a holder among the exchange's ranks.
        """
        self._split = RowSplit(placement)

    def dispatch(
        self, layer: int, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> DispatchedRows:
        """Post the receives, then send each rank its rows. On GPU this waits for the gate."""
        ids = ids_TK.cpu().numpy()
        weights = weights_TK.cpu().numpy()
        holder_TK = self._split.holders(layer, ids)
        sends: list[Message] = []
        parts: list[_Part] = []
        for rank, message in self._messages.items():
            local_TK = holder_TK == rank
            chosen = np.flatnonzero(local_TK.any(1))
            count = len(chosen)
            message.set_count(count)
            if count:
                rows_N = torch.from_numpy(chosen)
                here_NK = local_TK[chosen]
                message.ids(count).numpy()[:] = np.where(here_NK, ids[chosen], -1)
                message.weights(count).numpy()[:] = np.where(here_NK, weights[chosen], 0.0)
                rows_N = rows_N.to(self._device)
                torch.index_select(x_TD, 0, rows_N, out=message.rows(count))
                sums_ND = self._sums[rank][:count]
                parts.append(_Part(rows_N, sums_ND, self._exchange.receive_result(sums_ND, rank)))
            if self._exchange.one_message:
                sends.append(self._exchange.send_rows(message.whole(count), rank))
            else:
                sends.append(self._exchange.send_routing(message.routing(count), rank))
                if count:
                    sends.append(self._exchange.send_rows(message.rows(count), rank))
        return DispatchedRows(x_TD, parts, sends)

    def combine(self, in_flight: DispatchedRows) -> torch.Tensor:
        """Wait for every rank's sums and add them up, in rank order."""
        y_TD = torch.zeros_like(in_flight.x_TD)
        for part in in_flight.parts:
            part.arrival.wait()
            y_TD.index_add_(0, part.rows_N, part.sums_ND)
        for work in in_flight.sends:
            work.wait()
        return y_TD
