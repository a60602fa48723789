"""The exact dispatcher: only the rows a rank's experts need travel, in point-to-point messages.

Attention side here, expert side in `expert_server.py`; both follow from the step header and
from the count that each message carries, so no rank needs a collective.
Shape suffixes: T rows, D hidden, K experts per token.
"""

from __future__ import annotations

from time import perf_counter

import torch

from model.cpu_kernels.row_flight import make_row_flight
from model.exchange import Exchange
from model.placement import ExpertPlacement
from model.role_times import RoleTimes
from model.row_flight import RowFlight
from model.row_message import RowShape
from model.row_split import RowSplit


class ExactDispatcher:
    """Attention side of the exact all-to-all; every expert rank gets one message per dispatch.

    Before the first dispatch, `attach` gives it an exchange. Several dispatches may be under way
    at once; they are to be combined in their order.
    """

    def __init__(self, shape: RowShape) -> None:
        self._shape = shape
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
        for flight in self._flights:
            flight.connect(exchange)
        self._free = list(self._flights)
        self.set_placement(placement)

    def set_placement(self, placement: ExpertPlacement) -> None:
        """Use another placement from the next dispatch on; call between steps only.

        Every expert needs a holder among the exchange's ranks.
        """
        self._split = RowSplit(placement)

    def dispatch(
        self, layer: int, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> RowFlight:
        """Send each rank its rows and expect their sums. On GPU this waits for the gate."""
        began_s = perf_counter()
        flight = self._take_flight()
        self.times.sent_bytes += flight.launch(layer, x_TD, ids_TK, weights_TK, self._split)
        self.times.communication_s += perf_counter() - began_s
        return flight

    def _take_flight(self) -> RowFlight:
        if not self._free:
            self._flights.append(make_row_flight(self._ranks, self._shape))
            self._flights[-1].connect(self._exchange)
            self._free.append(self._flights[-1])
        return self._free.pop()

    def combine(self, in_flight: RowFlight) -> torch.Tensor:
        """Wait for every rank's sums and add them up, in rank order."""
        began_s = perf_counter()
        y_TD, arrived_s = in_flight.land()
        self._free.append(in_flight)
        self.times.wait_s += arrived_s - began_s
        self.times.communication_s += perf_counter() - arrived_s
        return y_TD
