"""The exact dispatcher: only the rows a rank's experts need travel, in point-to-point messages.

Attention side here, expert side in `expert_server.py`; both follow from the step header and
from the count that each message carries, so no rank needs a collective.
Shape suffixes: T rows, D hidden, K experts per token, N rows for one rank, S rows for all, rank
after rank, J ranks a row can go to at most: all, or K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from model.cpu_kernels.packing import row_packer
from model.exchange import Exchange, Message
from model.placement import ExpertPlacement
from model.role_times import RoleTimes
from model.row_message import RowMessage
from model.row_split import RowSplit


class _Flight:
    """The buffers of one dispatch that is under way: a message to each rank, and all their sums.

    The last row of the sums stays 0: it is what a row adds that went to fewer than J ranks.
    """

    def __init__(
        self,
        num_ranks: int,
        max_rows: int,
        hidden: int,
        top_k: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.messages = [
            RowMessage(max_rows, hidden, top_k, dtype, device) for _ in range(num_ranks)
        ]
        self.most_ranks = min(top_k, num_ranks)
        most_sums = max_rows * self.most_ranks
        self.sums_SD = torch.zeros(most_sums + 1, hidden, dtype=dtype, device=device)


@dataclass(frozen=True, slots=True)
class DispatchedRows:
    """One layer's rows on their way: where whose sums will lie, and what to wait for."""

    flight: _Flight
    places_JT: torch.Tensor  # for each row, which of the flight's sums are its own
    arrivals: list[Message]
    sends: list[Message]


class ExactDispatcher:
    """Attention side of the exact all-to-all; every expert rank gets one message per dispatch.

    Before the first dispatch, `attach` gives it an exchange. Several dispatches may be under way
    at once; they are to be combined in their order.
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
        self._flight_args = (max_rows, hidden, top_k, dtype, device)
        self._device = device
        self._flights: list[_Flight] = []
        self._free: list[_Flight] = []
        self.times = RoleTimes()

    def attach(self, exchange: Exchange, placement: ExpertPlacement) -> None:
        """Go on over this epoch's exchange, between two steps or two tries of one."""
        self._exchange = exchange
        ranks = exchange.ranks.expert
        self._ranks = ranks
        if not self._flights or len(self._flights[0].messages) != len(ranks):
            self._flights = [_Flight(len(ranks), *self._flight_args)]
        self._free = list(self._flights)
        one = self._flights[0]
        self._packer = row_packer(ranks, one.most_ranks, len(one.sums_SD) - 1, self._device)
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
        began_s = perf_counter()
        flight = self._take_flight()
        exchange = self._exchange
        ids, weights = ids_TK.cpu().numpy(), weights_TK.cpu().numpy()
        holders = self._split.holders(layer, ids)
        packed = self._packer.pack(x_TD, ids, weights, holders, flight.messages)
        arrivals: list[Message] = []
        sends: list[Message] = []
        start = 0
        for rank, message, count in zip(self._ranks, flight.messages, packed.counts, strict=True):
            parts = message.parts(count)
            if count:
                sums_ND = flight.sums_SD[start : start + count]
                arrivals.append(exchange.receive_result(sums_ND, rank))
                start += count
            if exchange.one_message:
                assert parts.whole is not None
                sends.append(exchange.send_rows(parts.whole, rank))
                self.times.sent_bytes += parts.whole.nbytes
            else:
                sends.append(exchange.send_routing(parts.routing, rank))
                if count:
                    sends.append(exchange.send_rows(parts.rows_ND, rank))
                self.times.sent_bytes += parts.routing.nbytes + parts.rows_ND.nbytes
        places_JT = packed.places_JT.to(self._device)
        self.times.communication_s += perf_counter() - began_s
        return DispatchedRows(flight, places_JT, arrivals, sends)

    def _take_flight(self) -> _Flight:
        if not self._free:
            self._flights.append(_Flight(len(self._ranks), *self._flight_args))
            self._free.append(self._flights[-1])
        return self._free.pop()

    def combine(self, in_flight: DispatchedRows) -> torch.Tensor:
        """Wait for every rank's sums and add them up, in rank order."""
        began_s = perf_counter()
        _wait_for(in_flight.arrivals)
        arrived_s = perf_counter()
        sums_SD, (first_T, *others) = in_flight.flight.sums_SD, in_flight.places_JT
        y_TD = sums_SD.index_select(0, first_T)
        for other_T in others:
            y_TD += sums_SD.index_select(0, other_T)
        _wait_for(in_flight.sends)
        self._free.append(in_flight.flight)
        self.times.wait_s += arrived_s - began_s
        self.times.communication_s += perf_counter() - arrived_s
        return y_TD


def _wait_for(messages: Sequence[Message]) -> None:
    for message in messages:
        message.wait()
