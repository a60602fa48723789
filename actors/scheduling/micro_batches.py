"""Into how many micro-batches an attention rank would cut its next step. Decisions only.

What is predicted to pay is tried, in turns with steps that are not cut, and kept only where
those took longer. Steps of about as many rows are judged together, each size by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from model.micro_batch import MOST_MICRO_BATCHES
from model.overlap import LinearCost, OverlapCosts, Point

FEWEST_ROWS = 64  # below, experts are bound by memory: each micro-batch reads the weights again
ASK_EVERY = 16  # steps: how often expert ranks are asked how long they were busy
TURNS = 8  # steps of either kind in a trial
_MIN_PREDICTED_GAIN = 0.1
_MIN_GAIN = 0.05  # measured, of what is new
_MAX_LOSS = 0.02  # measured, of what is in use
_FIRST_REST = 256  # steps of a size until the next trial; doubled by each that failed
_LONGEST_REST = 16384
_KEPT_POINTS = 4  # of each size
_TOO_LONG = 8 * TURNS  # steps that a trial may take: where another rank decides, it gets no turns


@dataclass(frozen=True, slots=True)
class RunStep:
    """A step that ran on this rank: its rows, its layers' seconds, and those spent waiting."""

    micro_batches: int
    rows: int
    layers_s: float
    wait_s: float


@dataclass(slots=True)
class _Trial:
    """Steps cut into `micro_batches` in turns with steps cut into the fewer of `base`."""

    micro_batches: int
    base: int
    num_steps: int = 0
    tried_s: list[float] = field(default_factory=list)
    base_s: list[float] = field(default_factory=list)

    @property
    def turn(self) -> int:
        """What the next step is cut into. Not plainly by turns: so may the load go."""
        return self.micro_batches if self.num_steps % 4 in (1, 2) else self.base

    def observe(self, micro_batches: int, seconds: float) -> None:
        self.num_steps += 1
        if micro_batches == self.micro_batches:
            self.tried_s.append(seconds)
        elif micro_batches == self.base:
            self.base_s.append(seconds)

    @property
    def gain(self) -> float | None:
        """The share of a step's time that it saves; None until enough is known."""
        if min(len(self.tried_s), len(self.base_s)) < TURNS:
            return None
        return 1.0 - median(self.tried_s) / median(self.base_s)


@dataclass(slots=True)
class _Size:
    """What is known of steps of about as many rows."""

    chosen: int = 1
    trial: _Trial | None = None
    tried_more: bool = False  # the last trial was of more micro-batches than had been chosen
    rest: int = TURNS  # steps until the next trial may begin
    last_rest: int = _FIRST_REST // 2
    attention: deque[Point] = field(default_factory=lambda: deque(maxlen=_KEPT_POINTS))
    expert: deque[Point] = field(default_factory=lambda: deque(maxlen=_KEPT_POINTS))
    travel: deque[Point] = field(default_factory=lambda: deque(maxlen=_KEPT_POINTS))

    def begin_trial(self, best: int) -> None:
        """Try what is predicted to be best, or whether what is in use still pays; or wait."""
        if best > self.chosen and not (self.tried_more and self.chosen > 1):
            self.trial, self.tried_more = _Trial(best, self.chosen), True
        elif self.chosen > 1:
            self.trial, self.tried_more = _Trial(self.chosen, self.chosen - 1), False
        else:
            self.tried_more, self.rest = False, ASK_EVERY

    def end_trial(self, gain: float) -> None:
        """Draw the consequence of a trial."""
        assert self.trial is not None
        in_use = self.chosen == self.trial.micro_batches
        if gain >= (-_MAX_LOSS if in_use else _MIN_GAIN):
            self.chosen, self.last_rest = self.trial.micro_batches, _FIRST_REST
        else:
            self.chosen, self.last_rest = (
                self.trial.base,
                min(2 * self.last_rest, _LONGEST_REST),
            )
        self.rest, self.trial = self.last_rest, None


class MicroBatches:
    """Of one attention rank: `propose` before a step, `observe` after it."""

    def __init__(self, fixed: int) -> None:
        """`fixed` micro-batches in every step, or as many as pay where it is 0.

        Raises:
            ValueError: no such number of micro-batches.
        """
        if not 0 <= fixed <= MOST_MICRO_BATCHES:
            raise ValueError(f"micro_batches must be from 0 to {MOST_MICRO_BATCHES}, got {fixed}")
        self._fixed = fixed
        self._sizes: dict[int, _Size] = {}
        self._num_proposed = 0
        self._others = 0  # rows of the other attention ranks, in the last step

    @property
    def asks_busy(self) -> bool:
        """Whether the next step's expert ranks are to tell how long they were busy."""
        return not self._fixed and self._num_proposed % ASK_EVERY == 0

    def propose(self, rows: int) -> int:
        """How many micro-batches this rank would cut a next step of so many rows into."""
        if self._fixed:
            return self._fixed
        if not rows:
            return 1
        self._num_proposed += 1
        size = self._size(rows)
        if size is None:
            return 1
        if size.trial is None and size.rest <= 0:
            best = self._costs().best(rows, rows + self._others, _MIN_PREDICTED_GAIN)
            size.begin_trial(best)
        return size.trial.turn if size.trial else size.chosen

    def observe(self, step: RunStep, all_rows: int, busy_s: Sequence[float] = ()) -> None:
        """Take in a step that ran, with the rows of all attention ranks.

        `busy_s`: how long each expert rank was busy in it, if they were asked.
        """
        if self._fixed:
            return
        self._others = all_rows - step.rows
        if busy_s:
            self._learn(step, all_rows, max(busy_s))
        size = self._size(step.rows)
        if size is None:
            return
        size.rest -= 1
        if size.trial is not None:
            size.trial.observe(step.micro_batches, step.layers_s)
            gain = size.trial.gain
            if gain is not None or size.trial.num_steps == _TOO_LONG:
                size.end_trial(gain or 0.0)

    def _learn(self, step: RunStep, all_rows: int, busy_s: float) -> None:
        points = self._sizes.setdefault(_size_of(step.rows), _Size())
        m = step.micro_batches
        points.attention.append(Point(m, step.rows, step.layers_s - step.wait_s))
        points.expert.append(Point(m, all_rows, busy_s))
        if m == 1:  # else part of the way is hidden behind work
            points.travel.append(Point(m, step.rows, max(0.0, step.wait_s - busy_s)))

    def _costs(self) -> OverlapCosts:
        def fit(kept: Callable[[_Size], Sequence[Point]]) -> LinearCost:
            return LinearCost.fit(point for size in self._sizes.values() for point in kept(size))

        return OverlapCosts(
            fit(lambda size: size.attention),
            fit(lambda size: size.expert),
            fit(lambda size: size.travel),
        )

    def _size(self, rows: int) -> _Size | None:
        """What is known of steps of about so many rows; None where they are too few to cut."""
        if rows < FEWEST_ROWS:
            return None
        return self._sizes.setdefault(_size_of(rows), _Size())


def _size_of(rows: int) -> int:
    """Two sizes to each power of two: 64-95, 96-127, 128-191 rows ..."""
    octave = rows.bit_length() - 1
    return 2 * octave + (rows >> (octave - 1) & 1 if octave else 0)
