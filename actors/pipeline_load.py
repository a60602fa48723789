"""How busy a pipeline is: what its router reports to Serve, and autoscaling decides on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.actor_stats import ActorStats


@dataclass(frozen=True, slots=True)
class PipelineLoad:
    """One pipeline's attention actors together, at one moment."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0  # of the fullest one, 0 to 1
    ttft_s: float = 0.0  # of the slowest one, recently; see RecentTtft

    @staticmethod
    def of(stats: Sequence[ActorStats]) -> PipelineLoad:
        """From what each actor says."""
        return PipelineLoad(
            running=sum(one.num_running for one in stats),
            waiting=sum(one.num_waiting for one in stats),
            kv_cache_usage=max((one.kv_cache_usage for one in stats), default=0.0),
            ttft_s=max((one.recent_ttft_s for one in stats), default=0.0),
        )
