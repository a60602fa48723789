"""What follows attention in a layer: a mixture of experts, or one dense block.

Shape suffixes: T rows, D hidden, K experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import torch

from model.dispatch import Dispatcher
from model.expert_load import ExpertLoad
from model.experts import AnyExpert
from model.gate import Gate
from model.role_times import RoleTimes
from model.step_batch import StepBatch

Choice: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # ids_TK, weights_TK; K 0: no gate


class FeedForward(Protocol):
    """The feed-forward part of every layer.

    `begin` may return before the work is done and `end` waits for it; what is begun first is to be
    ended first, and the rows must not change in between. `times` has what others did meanwhile.
    """

    times: RoleTimes

    def begin(
        self, layer: int, x_TD: torch.Tensor, first_row: int, choice: Choice | None = None
    ) -> Any:
        """Start on one layer's rows, the step's from `first_row` on; the result is for `end`.

        `choice` is the gate's, where it has been asked already.
        """
        ...

    def end(self, begun: Any) -> torch.Tensor:
        """Return y_TD, what the layer adds to its rows."""
        ...

    def finish_step(self, batches: Sequence[StepBatch]) -> None:
        """Count what the layers of a step did, in its micro-batches or the one batch."""
        ...


class MixtureOfExperts:
    """A gate a layer; its experts are wherever the dispatcher says."""

    def __init__(self, gates: Sequence[Gate], dispatcher: Dispatcher, load: ExpertLoad) -> None:
        self._gates = gates
        self._dispatcher = dispatcher
        self._load = load
        self.times = dispatcher.times

    def begin(
        self, layer: int, x_TD: torch.Tensor, first_row: int, choice: Choice | None = None
    ) -> Any:
        """Choose experts for the rows and send them there."""
        ids_TK, weights_TK = self._gates[layer](x_TD) if choice is None else choice
        in_flight = self._dispatcher.dispatch(layer, x_TD, ids_TK, weights_TK)
        self._load.record(layer, ids_TK, first_row)
        return in_flight

    def end(self, begun: Any) -> torch.Tensor:
        """Take the experts' weighted sums back."""
        return self._dispatcher.combine(begun)

    def finish_step(self, batches: Sequence[StepBatch]) -> None:
        """Count the choices."""
        slots = [one.slots_T for one in batches]
        previous = [one.previous_slots_T for one in batches]
        if len(batches) == 1:
            self._load.finish_step(slots[0], previous[0])
        else:
            self._load.finish_step(torch.cat(slots), torch.cat(previous))


class DenseFeedForward:
    """A layer's one block, which all rows go through: the same SwiGLU as an expert's, no gate."""

    def __init__(self, blocks: Sequence[AnyExpert]) -> None:
        self._blocks = blocks
        self.times = RoleTimes()  # nothing travels, nobody is waited for

    def begin(
        self, layer: int, x_TD: torch.Tensor, first_row: int, choice: Choice | None = None
    ) -> torch.Tensor:
        """Run the block at once."""
        return self._blocks[layer](x_TD)

    def end(self, begun: torch.Tensor) -> torch.Tensor:
        """Return what `begin` computed."""
        return begun

    def finish_step(self, batches: Sequence[StepBatch]) -> None:
        """Nothing was chosen, nothing is counted."""
