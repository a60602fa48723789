"""Counts that only grow, from many processes, of which each may die: who knows what was counted.

Every process that counts for itself is a source: an ingress its requests, a router its pipeline.
Nobody but the source changes its counts, so of two versions the greater is the newer, series by
series, and joining what several have heard loses and repeats nothing, in whatever order. Routers
and ingresses tell each other all they have heard: what a source has told lives on without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import add

Series = tuple[str, ...]  # a metric's name, then the values of its labels
Value = tuple[float, ...]  # of a histogram: observations in each bucket, then their sum
Counts = Mapping[Series, Value]
Tally = Mapping[str, Counts]  # by source


def joined(tallies: Iterable[Tally]) -> dict[str, dict[Series, Value]]:
    """What all have heard: of every series of every source the greatest version."""
    joint: dict[str, dict[Series, Value]] = {}
    for tally in tallies:
        for source, counts in tally.items():
            known = joint.get(source)
            if known is None:
                joint[source] = dict(counts)
                continue
            for series, value in counts.items():
                old = known.get(series)
                known[series] = value if old is None else tuple(map(max, old, value))
    return joint


def added(parts: Iterable[Counts]) -> dict[Series, Value]:
    """The sum, series by series."""
    total: dict[Series, Value] = {}
    for counts in parts:
        for series, value in counts.items():
            old = total.get(series)
            total[series] = value if old is None else tuple(map(add, old, value))
    return total


class Succession:
    """The counts of places that one process after another holds, each counting from zero.

    What the ones before had counted when they were last heard stays.
    """

    def __init__(self) -> None:
        self._gone: dict[Series, Value] = {}
        self._last: dict[int, tuple[str, Counts]] = {}  # place -> who holds it, and its counts
        self._before: dict[int, str] = {}  # place -> who held it last

    def take(self, place: int, holder: str, counts: Counts) -> None:
        """Note what the holder of a place has counted since it began.

        An answer that comes later than one of the holder's successor is left out.
        """
        if self._before.get(place) == holder:
            return
        before = self._last.get(place)
        if before is not None and before[0] != holder:
            self._gone = added([self._gone, before[1]])
            self._before[place] = before[0]
        elif before is not None:
            # An answer that was overtaken by a later one takes nothing back.
            counts = joined([{"": before[1]}, {"": counts}])[""]
        self._last[place] = (holder, counts)

    def counts(self) -> dict[Series, Value]:
        """Of all places and all their holders together."""
        return added([self._gone, *(counts for _, counts in self._last.values())])
