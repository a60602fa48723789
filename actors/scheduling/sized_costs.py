"""Seconds by rows, from what was measured of some sizes.

Between two sizes the cost grows evenly; the first rows may cost far more than those behind them,
since they read weights that a few decodes had no use for.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

_STEPS = 5  # remembered of each size


class SizedCosts:
    """Medians of the last few of each size."""

    def __init__(self) -> None:
        self._of_size: dict[int, deque[tuple[int, float]]] = {}  # rows, seconds

    def add(self, rows: int, seconds: float) -> None:
        """Take in that so many rows took so long."""
        self._of_size.setdefault(size_of(rows), deque(maxlen=_STEPS)).append((rows, seconds))

    def rows(self, seconds: float) -> int:
        """Rows that take so long: 0 if less than the fewest seen; at most twice the most seen."""
        rows, cost_s, row_s = 0.0, 0.0, 0.0  # of the greatest size that fits
        for more, more_s in self._costs():
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

    def seconds(self, rows: int) -> float:
        """Seconds for so many rows by what was seen so far; 0 if nothing was."""
        below, below_s = 0.0, 0.0
        for more, cost_s in self._costs():
            if more >= rows:
                share = (rows - below) / (more - below)
                return below_s + share * (cost_s - below_s) if below else cost_s
            below, below_s = more, cost_s
        return below_s * rows / below if below else 0.0

    def _costs(self) -> list[tuple[float, float]]:
        """(rows, seconds) of every size seen; fewer rows never take more time.

        So what is wrong is mended: steps of a size that seems too cheap are run, and measured.
        """
        costs: list[tuple[float, float]] = []
        most_s = math.inf
        for _, of_size in sorted(self._of_size.items(), reverse=True):
            most_s = min(most_s, median(seconds for _, seconds in of_size))
            costs.append((median(rows for rows, _ in of_size), most_s))
        return costs[::-1]


def size_of(rows: int) -> int:
    """1, 2, 3, 4-5, 6-7, 8-11, 12-15, 16-23 ... rows as 0, 2, 3, 4, 5, 6, 7, 8 ..."""
    octave = rows.bit_length() - 1
    return 2 * octave + (rows >> (octave - 1) & 1 if octave else 0)


def most_rows(size: int) -> int:
    """The most rows a step of that size has."""
    octave, half = divmod(size, 2)
    return ((3 + half) << octave) // 2 - 1 if octave else 1
