"""What a router says of its pipeline when asked: plain data for /v1/experts, /metrics, health."""

from __future__ import annotations

from dataclasses import dataclass

from actors.pipeline.recovery_log import Recovery, RecoveryCounts
from actors.ranks.actor_stats import ActorIdentity

Table = tuple[tuple[tuple[int, ...], ...], ...]  # [layer][expert] -> ranks


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the balancer made of the load at one moment."""

    at_s: float  # Unix time
    outcome: str  # "none", "advised", "applied" or "failed"
    gain: float  # share of the busiest ranks' rows that it saves, as predicted
    reason: str


@dataclass(frozen=True, slots=True)
class BalanceReport:
    """The balancer's doings."""

    mode: str
    recent: tuple[Proposal, ...]
    counts: dict[str, int]  # proposals, by outcome


@dataclass(frozen=True, slots=True)
class PipelineReport:
    """One pipeline at one moment."""

    router: ActorIdentity
    serving: bool
    obstacle: str | None  # why it does not serve
    unfinished: int  # requests, running and waiting
    num_attention: int  # attention actors it is to have
    attention: tuple[str, ...]  # the names of those that serve
    max_model_len: int  # tokens of prompt + answer
    placement_version: int
    target: Table  # who is to hold what; () where the attention actors hold all
    filling: tuple[int, ...]  # ranks that wait for an actor
    faults: dict[int, str]  # why they still do
    num_spares: int
    recoveries: tuple[Recovery, ...]
    recovery_counts: RecoveryCounts
    changes: dict[str, int]  # placement changes, by outcome
    balance: BalanceReport
