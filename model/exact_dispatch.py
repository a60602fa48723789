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

from model.cpu_kernels.row_flight import make_row_flight
from model.exchange import Exchange, Message
from model.placement import ExpertPlacement
from model.role_times import RoleTimes
from model.row_flight import RowFlight
from model.row_split import RowSplit


@dataclass(frozen=True, slots=True)
class DispatchedRows:
    """One layer's rows on their way, and what to wait for."""

    flight: RowFlight
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
        self._flights: list[RowFlight] = []
        self._free: list[RowFlight] = []
        self._ranks: tuple[int, ...] = ()
        self.times = RoleTimes()

    def attach(self, exchange: Exchange, placement: ExpertPlacement) -> None:
        """Go on over this epoch's exchange, between two steps or two tries of one."""
        self._exchange = exchange
        if exchange.ranks.expert != self._ranks:
            self._ranks = exchange.ranks.expert
            self._flights = []
        self._free = list(self._flights)
        self.set_placement(placement)

    def set_placement(self, placement: ExpertPlacement) -> None:
        """Use another placement from the next dispatch on; call between steps only.

        Every expert needs a holder among the exchange's ranks.
        """
        self._split = RowSplit(placement)

    def dispatch(
        self, layer: int, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> DispatchedRows:
        """Send each rank its rows and expect their sums. On GPU this waits for the gate."""
        began_s = perf_counter()
        flight = self._take_flight()
        counts = flight.pack(layer, x_TD, ids_TK, weights_TK, self._split)
        if self._exchange.one_message:  # gloo sends at once only what is expected already
            arrivals = self._expect(flight, counts)
            sends = self._send_whole(flight, counts)
        else:  # NCCL has one queue for each peer, where a send would wait behind its own answer
            sends = self._send_split(flight, counts)
            arrivals = self._expect(flight, counts)
        self.times.communication_s += perf_counter() - began_s
        return DispatchedRows(flight, arrivals, sends)

    def _expect(self, flight: RowFlight, counts: Sequence[int]) -> list[Message]:
        arrivals, start = [], 0
        for rank, count in zip(self._ranks, counts, strict=True):
            if count:
                sums_ND = flight.sums(start, count)
                arrivals.append(self._exchange.receive_result(sums_ND, rank))
                start += count
        return arrivals

    def _send_whole(self, flight: RowFlight, counts: Sequence[int]) -> list[Message]:
        sends = []
        for rank, message, count in zip(self._ranks, flight.messages, counts, strict=True):
            parts = message.parts(count)
            assert parts.whole is not None
            sends.append(self._exchange.send_rows(parts.whole, rank))
            self.times.sent_bytes += parts.num_bytes
        return sends

    def _send_split(self, flight: RowFlight, counts: Sequence[int]) -> list[Message]:
        sends = []
        for rank, message, count in zip(self._ranks, flight.messages, counts, strict=True):
            parts = message.parts(count)
            sends.append(self._exchange.send_routing(parts.routing, rank))
            if count:
                sends.append(self._exchange.send_rows(parts.rows_ND, rank))
            self.times.sent_bytes += parts.num_bytes
        return sends

    def _take_flight(self) -> RowFlight:
        if not self._free:
            self._flights.append(make_row_flight(self._ranks, *self._flight_args))
            self._free.append(self._flights[-1])
        return self._free.pop()

    def combine(self, in_flight: DispatchedRows) -> torch.Tensor:
        """Wait for every rank's sums and add them up, in rank order."""
        began_s = perf_counter()
        _wait_for(in_flight.arrivals)
        arrived_s = perf_counter()
        y_TD = in_flight.flight.add_up()
        _wait_for(in_flight.sends)
        self._free.append(in_flight.flight)
        self.times.wait_s += arrived_s - began_s
        self.times.communication_s += perf_counter() - arrived_s
        return y_TD


def _wait_for(messages: Sequence[Message]) -> None:
    for message in messages:
        message.wait()
