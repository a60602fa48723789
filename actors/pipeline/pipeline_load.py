"""How busy a pipeline is: what its router reports to Serve, and autoscaling decides on."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from actors.ranks.actor_stats import ActorStats

_BEATS = 5  # seconds: who asks for little at a time comes and goes in less


@dataclass(frozen=True, slots=True)
class PipelineLoad:
    """One pipeline's attention actors together."""

    running: float = 0.0
    waiting: float = 0.0
    kv_cache_usage: float = 0.0  # of the fullest one, 0 to 1
    ttft_s: float = 0.0  # of the slowest one, recently; see RecentTtft


class RecentLoads:
    """The last beats of a pipeline. Clients that step alike make each of them all or nothing."""

    def __init__(self) -> None:
        self._beats: deque[Sequence[ActorStats]] = deque(maxlen=_BEATS)

    def add(self, stats: Sequence[ActorStats]) -> None:
        """What every attention actor says of itself now."""
        self._beats.append(stats)

    def mean(self) -> PipelineLoad:
        """Requests on average over the beats, the rest as it was at the last one."""
        if not self._beats:
            return PipelineLoad()
        latest, count = self._beats[-1], len(self._beats)
        return PipelineLoad(
            running=sum(one.num_running for beat in self._beats for one in beat) / count,
            waiting=sum(one.num_waiting for beat in self._beats for one in beat) / count,
            kv_cache_usage=max((one.kv_cache_usage for one in latest), default=0.0),
            ttft_s=max((one.recent_ttft_s for one in latest), default=0.0),
        )
