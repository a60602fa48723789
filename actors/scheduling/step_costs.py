"""What rows cost: seconds of a step by its rows, from the steps lately measured.

Medians of a few steps of about one size, so that a hiccup of the machine moves none of them.
Between two sizes the cost grows evenly; the first rows of prompts may cost far more than those
behind them, since they read weights that a few decodes had no use for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

_CALM_STEPS, _STEPS = 15, 5  # remembered of each size: that only decode, and that do not
_WHOLE_STEPS = 5  # remembered of those without decodes
_LATELY = 3  # steps
_FEWEST_ROWS = 8  # fewer rows of prompts vanish in the noise
_FEWEST_WHOLE = 64  # of prompts by themselves: fewer say nothing of many


class StepCosts:
    """Learns from `observe`; knows nothing at first."""

    def __init__(self) -> None:
        self._num_observed = 0
        self._calm_s: dict[int, deque[float]] = {}  # by size of a step that only decodes
        self._calm_at: dict[int, int] = {}  # what _num_observed was at the last of them
        self._dearer: deque[float] = deque(maxlen=_LATELY)  # seconds / what was seen before
        self._prefills: dict[int, deque[tuple[int, float]]] = {}  # by size: rows, seconds for them
        self._whole: deque[tuple[int, float]] = deque(maxlen=_WHOLE_STEPS)  # the same, no decodes

    def observe(self, decode_rows: int, prefill_rows: int, seconds: float) -> None:
        """Take in a step that ran; one without decodes says nothing of what it does to them."""
        self._num_observed += 1
        if not decode_rows:
            if prefill_rows >= _FEWEST_WHOLE:
                self._whole.append((prefill_rows, seconds))
            return
        if not prefill_rows:
            size = _size(decode_rows)
            self._calm_s.setdefault(size, deque(maxlen=_CALM_STEPS)).append(seconds)
            self._calm_at[size] = self._num_observed
        elif prefill_rows >= _FEWEST_ROWS:
            calm_s = self.calm_s(decode_rows)
            if calm_s is not None:
                extra_s = max(0.0, seconds - calm_s)
                expected_s = self._cost_s(prefill_rows)
                if expected_s:
                    self._dearer.append(extra_s / expected_s)
                of_size = self._prefills.setdefault(_size(prefill_rows), deque(maxlen=_STEPS))
                of_size.append((prefill_rows, extra_s))

    def calm_age(self, decode_rows: int) -> float:
        """Steps observed since one that only decoded about so many rows; inf if there was none."""
        at = self._calm_at.get(_size(decode_rows))
        return math.inf if at is None else self._num_observed - at

    def calm_s(self, decode_rows: int) -> float | None:
        """Seconds of a step that only decodes so many rows; None if no such step was seen.

        Of a size not seen yet it is rather too little than too much.
        """
        if not self._calm_s:
            return None
        size = _size(decode_rows)
        fewer = [one for one in self._calm_s if one <= size]
        if fewer:
            return _undisturbed(self._calm_s[max(fewer)])
        more = min(self._calm_s)
        return _undisturbed(self._calm_s[more]) * decode_rows / _most_rows(more)

    def prefill_rows(self, seconds: float) -> int:
        """Rows of prompts that take so long beside decodes, as far as was seen.

        0 if less than the fewest seen; at most twice the most seen. Where steps lately took
        longer than was seen, as they do far into a long prompt, they will with other sizes too.
        """
        if self._dearer:
            seconds /= max(1.0, median(self._dearer))
        rows, cost_s, row_s = 0.0, 0.0, 0.0  # of the greatest size that fits
        for more, more_s in self._prefill_costs():
            row_s = (more_s - cost_s) / (more - rows)
            if more_s > seconds:
                return int(rows + (seconds - cost_s) / row_s) if rows else 0
            rows, cost_s = more, more_s
        if not rows:
            return 0
        # Beyond all of them a row costs what it does between the last two, or, since the first
        # may be the dearest, a third less than they do on average.
        row_s = max(row_s, cost_s / rows / 1.5)
        dear = cost_s + row_s * rows > seconds
        return int(rows + (seconds - cost_s) / row_s if dear else 2 * rows)

    def whole_rows(self, seconds: float) -> int:
        """Rows of prompts that take so long by themselves, by the largest steps of them lately.

        0 if none were seen. A row of a larger step costs rather less, but for far longer prompts.
        """
        if not self._whole:
            return 0
        most = max(rows for rows, _ in self._whole)
        row_s = median(took_s / rows for rows, took_s in self._whole if 2 * rows > most)
        return int(seconds / max(row_s, 1e-9))

    def _cost_s(self, prefill_rows: int) -> float:
        """Seconds for rows of prompts by what was seen so far; 0 if nothing was."""
        below, below_s = 0.0, 0.0
        for rows, cost_s in self._prefill_costs():
            if rows >= prefill_rows:
                share = (prefill_rows - below) / (rows - below)
                return below_s + share * (cost_s - below_s) if below else cost_s
            below, below_s = rows, cost_s
        return below_s * prefill_rows / below if below else 0.0

    def _prefill_costs(self) -> list[tuple[float, float]]:
        """(rows, seconds) of every size seen; fewer rows never take more time.

        So what is wrong is mended: steps of a size that seems too cheap are run, and measured.
        """
        costs: list[tuple[float, float]] = []
        most_s = math.inf
        for _, of_size in sorted(self._prefills.items(), reverse=True):
            most_s = min(most_s, median(seconds for _, seconds in of_size))
            costs.append((median(rows for rows, _ in of_size), most_s))
        return costs[::-1]


def _undisturbed(times_s: Sequence[float]) -> float:
    """The lower quartile: a step takes longer behind one with prompts, which empties the caches."""
    return sorted(times_s)[(len(times_s) - 1) // 4]


def _size(rows: int) -> int:
    """1, 2, 3, 4-5, 6-7, 8-11, 12-15, 16-23 ... rows as 0, 2, 3, 4, 5, 6, 7, 8 ..."""
    octave = rows.bit_length() - 1
    return 2 * octave + (rows >> (octave - 1) & 1 if octave else 0)


def _most_rows(size: int) -> int:
    """The most rows a step of that size has."""
    octave, half = divmod(size, 2)
    return ((3 + half) << octave) // 2 - 1 if octave else 1
