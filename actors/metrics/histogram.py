"""A histogram that only counts: made to be told, joined and added, not to be drawn."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Observations by bucket; the bounds are upper ones and belong to their buckets."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0.0] * (len(bounds) + 1)  # the last: beyond all bounds
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a measurement."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    @property
    def value(self) -> tuple[float, ...]:
        """Observations in each bucket, then their sum."""
        return (*self._counts, self._sum)
