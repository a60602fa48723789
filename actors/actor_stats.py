"""What an actor says of itself when asked: plain data for /v1/experts, /metrics and health."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Phase = Literal["created", "loading", "loaded", "serving", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class ActorIdentity:
    """Which actor, where."""

    pipeline: str
    rank: int
    role: Literal["attention", "expert"]
    pid: int
    node: str
    device: str


@dataclass(frozen=True, slots=True)
class Recovery:
    """One interruption of a pipeline, and how long each phase of its end took."""

    cause: str  # "death" or "hang" of an actor, or "link" where all were alive
    dead: tuple[tuple[str, int], ...]  # (role, rank)
    at_s: float  # Unix time it was noticed
    fence_s: float  # until every survivor had left the epoch
    start_s: float  # new processes, until their weights were loaded
    join_s: float  # new process group

    @property
    def total_s(self) -> float:
        """From the notice to the next step."""
        return self.fence_s + self.start_s + self.join_s


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
    placement_version: int = 0
    placement: tuple[tuple[tuple[int, ...], ...], ...] = ()
    expert_tokens: Sequence[Sequence[int]] = ()  # [layer][expert]
    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    num_preemptions: int = 0
    num_rows: int = 0
    recoveries: tuple[Recovery, ...] = ()
    # both
    num_steps: int = 0
    # expert
    wait_s: float = 0.0
    compute_s: float = 0.0
