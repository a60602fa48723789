"""What an actor says of itself when asked: plain data for /v1/experts and /metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from actors.ranks.start_times import NEVER, StartTimes

Phase = Literal["created", "loading", "serving", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class ActorIdentity:
    """Which actor, where. A rank of -1 is none: routers, ingresses and spares have none."""

    pipeline: str
    rank: int
    role: Literal["router", "attention", "expert", "spare", "ingress"]
    pid: int
    node: str
    device: str


@dataclass(frozen=True, slots=True)
class ActorStats:
    """One actor at one moment. Fields of the other role are left at their defaults."""

    identity: ActorIdentity
    phase: Phase
    failure: str | None
    weights_bytes: int
    read_bytes: int  # of weights_on_disk_bytes, while loading
    weights_on_disk_bytes: int
    # attention
    micro_batches: int = 0  # of the last step; 0: none ran yet
    placement_version: int = 0
    placement: tuple[tuple[tuple[int, ...], ...], ...] = ()
    expert_tokens: Sequence[Sequence[int]] = ()  # [layer][expert]
    expert_repeats: tuple[int, Sequence[int], Sequence[int]] = (0, (), ())  # see model's Repeats
    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    recent_ttft_s: float = 0.0  # see RecentTtft
    num_preemptions: int = 0
    prefix_cache_queries: int = 0  # tokens
    prefix_cache_hits: int = 0  # tokens
    queue_time: tuple[float, ...] = ()  # a Histogram's value, seconds
    # both
    num_rows: int = 0  # of an expert actor: over all layers
    start: StartTimes = NEVER
    num_steps: int = 0
    wait_s: float = 0.0  # these three: see RoleTimes
    compute_s: float = 0.0
    communication_s: float = 0.0
    sent_bytes: int = 0  # rows and sums, to other ranks
