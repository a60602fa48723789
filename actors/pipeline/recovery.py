"""What to do when actors are lost: pure decisions over ranks and placement.

The rule: whoever is left serves on as soon as that is possible at all; a lost rank's replacement
is loaded beside it and joins when it is ready.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from model.placement import ExpertPlacement

Cause = Literal["death", "hang", "link"]
Answer = Literal["alive", "dead", "silent"]

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0


@dataclass(frozen=True, slots=True)
class Losses:
    """Who is to be replaced after a roll call, and why."""

    dead: frozenset[int]
    hung: frozenset[int]

    @property
    def ranks(self) -> frozenset[int]:
        """All lost ranks."""
        return self.dead | self.hung

    def and_also(self, others: Losses) -> Losses:
        """The losses of two roll calls."""
        return Losses(self.dead | others.dead, self.hung | others.hung)

    @property
    def cause(self) -> Cause:
        """`link` where all answered: a message between two that live was lost."""
        return "death" if self.dead else "hang" if self.hung else "link"


def losses(answers: Mapping[int, Answer]) -> Losses:
    """Judge a roll call: who did not answer in time hangs, and is lost as the dead are."""
    return Losses(
        frozenset(rank for rank, answer in answers.items() if answer == "dead"),
        frozenset(rank for rank, answer in answers.items() if answer == "silent"),
    )


def obstacle(
    attention: Collection[int], expert: Collection[int], target: ExpertPlacement | None
) -> str | None:
    """Why these ranks cannot serve alone, in one phrase; None if they can.

    `target` says who is to hold which expert; None where the attention ranks hold all.
    """
    if not attention:
        return "no attention actor is left"
    if target is None:
        return None
    orphans = [
        (layer, index)
        for layer, experts in enumerate(target.within(expert))
        for index, holders in enumerate(experts)
        if not holders
    ]
    if not orphans:
        return None
    layer, index = orphans[0]
    more = f" and {len(orphans) - 1} more" if len(orphans) > 1 else ""
    return f"expert {index} of layer {layer}{more} has no holder left"


def in_force(target: ExpertPlacement, expert: Collection[int], version: int) -> ExpertPlacement:
    """The placement among these expert ranks, which must be able to serve alone."""
    return ExpertPlacement(version, target.within(expert))


def retry_delay_s(failures: int) -> float:
    """How long to wait before a replacement that failed so often (>= 1) is tried again."""
    return min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(failures - 1, 16))


def describe(error: BaseException) -> str:
    """One line: what went wrong in an actor, as the actor itself put it."""
    cause = getattr(error, "cause", None) or error
    kind, text = type(cause).__name__, str(cause)
    return f"{kind}: {text}".splitlines()[0] if text else kind
