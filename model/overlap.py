"""What micro-batches would cost, from measured times: when overlap pays. Pure.

A step is cut into m micro-batches; while one is with the experts, attention works on another.
Each costs its rank something of its own (the weights are read once more, a message is sent) and
something for every row. Times are of all layers of a step together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from model.micro_batch import MOST_MICRO_BATCHES


class Point(NamedTuple):
    """What was measured of one step."""

    micro_batches: int
    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LinearCost:
    """Seconds of a step: `batch_s` for each of its micro-batches, `row_s` for each of its rows."""

    batch_s: float
    row_s: float

    def of(self, micro_batches: int, rows: int) -> float:
        """Seconds of a step that is cut so."""
        return self.batch_s * micro_batches + self.row_s * rows

    @classmethod
    def fit(cls, points: Iterable[Point]) -> LinearCost:
        """The line of least squares of relative errors, with neither part below 0.

        Points of one size cannot tell the parts apart: all is `batch_s` then, so that
        micro-batches look dearer than they are, not cheaper.
        """
        mm = mr = rr = ms = rs = 0.0
        for micro_batches, rows, seconds in points:
            # Every point counts alike, however long its step took.
            share = 1.0 / max(seconds, 1e-9) ** 2
            mm += share * micro_batches * micro_batches
            mr += share * micro_batches * rows
            rr += share * rows * rows
            ms += share * micro_batches * seconds
            rs += share * rows * seconds
        if not mm:
            return cls(0.0, 0.0)
        spread = mm * rr - mr * mr
        if spread > 1e-6 * mm * rr:
            batch_s, row_s = (rr * ms - mr * rs) / spread, (mm * rs - mr * ms) / spread
            if batch_s >= 0 and row_s >= 0:
                return cls(batch_s, row_s)
            if batch_s < 0:
                return cls(0.0, rs / rr)
        return cls(ms / mm, 0.0)


@dataclass(frozen=True, slots=True)
class OverlapCosts:
    """What one attention rank knows of its pipeline.

    attention: what it computes and does for messages itself, over its own rows. expert: the
    same of the busiest expert rank, over the rows of all attention ranks. travel: what it waits
    beyond that when nothing overlaps, over its own rows.
    """

    attention: LinearCost
    expert: LinearCost
    travel: LinearCost

    def step_s(self, micro_batches: int, rows: int, all_rows: int) -> float:
        """Predicted seconds of a step's layers.

        The busier side sets the pace, unless there are too few micro-batches to keep it busy:
        each has to pass attention, experts and the ways between them one after another.
        """
        attention_s = self.attention.of(micro_batches, rows)
        expert_s = self.expert.of(micro_batches, all_rows)
        around_s = attention_s + expert_s + self.travel.of(micro_batches, rows)
        return max(attention_s, expert_s, around_s / micro_batches)

    def best(self, rows: int, all_rows: int, min_gain: float) -> int:
        """The number of micro-batches to use: each further one has to gain `min_gain` (0..1)."""
        chosen, chosen_s = 1, self.step_s(1, rows, all_rows)
        for micro_batches in range(2, MOST_MICRO_BATCHES + 1):
            predicted_s = self.step_s(micro_batches, rows, all_rows)
            if predicted_s < (1.0 - min_gain) * chosen_s:
                chosen, chosen_s = micro_batches, predicted_s
        return chosen
