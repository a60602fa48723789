"""The interruptions of a pipeline: the last ones in full, all of them as counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from actors.metrics.histogram import Histogram
from actors.metrics.metric_table import RECOVERY_SECONDS
from actors.pipeline.recovery import Cause

_KEPT = 100


@dataclass(frozen=True, slots=True)
class Recovery:
    """One interruption of a pipeline, and how long each phase of its end took."""

    cause: Cause
    dead: tuple[tuple[str, int], ...]  # (role, rank) of those lost
    at_s: float  # Unix time it was noticed
    fence_s: float  # until every survivor had left the epoch
    start_s: float  # until enough ranks were there, loaded
    join_s: float  # new process groups

    @property
    def total_s(self) -> float:
        """From the notice to the next step."""
        return self.fence_s + self.start_s + self.join_s


@dataclass(frozen=True, slots=True)
class RecoveryCounts:
    """All interruptions since the pipeline began; counters for Prometheus."""

    lost: dict[tuple[str, Cause], int]  # actors, by role and cause
    seconds: tuple[float, ...]  # how long they took: a Histogram's value


@dataclass(slots=True)
class RecoveryLog:
    """What a pipeline remembers of its interruptions."""

    recent: list[Recovery] = field(default_factory=list)
    _lost: Counter[tuple[str, Cause]] = field(default_factory=Counter)
    _seconds: Histogram = field(default_factory=lambda: Histogram(RECOVERY_SECONDS.buckets))

    def add(self, recovery: Recovery) -> None:
        """Note one more."""
        self.recent = [*self.recent, recovery][-_KEPT:]
        self._lost.update((role, recovery.cause) for role, _rank in recovery.dead)
        self._seconds.observe(recovery.total_s)

    def counts(self) -> RecoveryCounts:
        """A snapshot."""
        return RecoveryCounts(dict(self._lost), self._seconds.value)
