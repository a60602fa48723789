"""What can be asked of a running pipeline's placement, and what it answers: plain values."""

from __future__ import annotations

from dataclasses import dataclass

Copy = tuple[int, int, int]  # (layer, expert, rank): one expert's weights of one layer on one rank


@dataclass(frozen=True, slots=True)
class Replicate:
    """Let one more rank hold an expert, in `layer` or in all; on `to`, or on the least busy."""

    expert: int
    layer: int | None = None
    to: int | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """Take an expert from the rank `source` (its busiest holder) to the rank `to` (least busy)."""

    expert: int
    layer: int | None = None
    source: int | None = None
    to: int | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """Let `rank` (the busiest holder) hold an expert no longer. The last holder keeps it."""

    expert: int
    layer: int | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Rebalance:
    """Place the experts as the balancer would; `dry_run`: only say how."""

    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """Serve with so many expert actors from now on."""

    expert_actors: int


PlacementChange = Replicate | Move | Drop | Rebalance | Scale


class ChangeRefused(ValueError):
    """The change cannot be made; nothing has happened. `param` names the argument at fault.

    `param` is None where the change itself is in order and the moment is not: try again later.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class ChangeReport:
    """What one pipeline did with a change that it accepted."""

    pipeline: str
    placement_version: int  # in force now
    applied: bool  # False for a dry run, and where nothing was to be done
    reason: str  # one sentence
    added: tuple[Copy, ...]
    dropped: tuple[Copy, ...]
    took_s: float


@dataclass(frozen=True, slots=True)
class ChangeOutcome:
    """What came of a change that at least one pipeline accepted."""

    reports: tuple[ChangeReport, ...]
    refused: tuple[str, ...] = ()  # one reason for each pipeline that did not
