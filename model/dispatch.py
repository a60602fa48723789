"""The seam between a layer's gate and its experts, and the dispatcher that is its oracle.

Shape suffixes: T rows, D hidden, K experts per token.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from model.experts import ExpertShard
from model.role_times import RoleTimes


class Dispatcher(Protocol):
    """Carries rows to the experts they chose and the weighted sums back.

    `dispatch` may return before the experts are done; `combine` waits for them. Between the
    two the caller may do other work, and dispatch other rows, but must not change these. What is
    dispatched first is to be combined first. `times` has what was not the caller's own work.
    """

    times: RoleTimes

    def dispatch(
        self, layer: int, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> Any:
        """Send each row to the ranks that hold its experts; what it returns is for `combine`."""
        ...

    def combine(self, in_flight: Any) -> torch.Tensor:
        """Return y_TD: for each row, the sum of weight * expert(row) over its experts."""
        ...


class LocalDispatcher:
    """All experts in this process: the colocated topology, and what every other must equal."""

    def __init__(self, shard: ExpertShard) -> None:
        self._shard = shard
        self.times = RoleTimes()  # nothing travels, nobody is waited for

    def dispatch(
        self, layer: int, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """Run the experts at once."""
        return self._shard.forward(layer, x_TD, ids_TK, weights_TK)

    def combine(self, in_flight: torch.Tensor) -> torch.Tensor:
        """Return what `dispatch` computed."""
        return in_flight
