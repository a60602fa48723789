"""Carrying out changes of the placement while requests run.

Weights first: what is added is loaded beside the serving. Then the attention ranks take the new
table over, each between two of its steps. What was dropped goes last, when no rank asks for it
any more. A change that fails or is interrupted leaves the old placement in force.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ray.exceptions import RayError

from actors.log_lines import about
from actors.patience import all_of, forget
from actors.pipeline.crew import Crew
from actors.pipeline.groups import Groups
from actors.pipeline.recovery import describe, in_force
from actors.pipeline.spawn import Member
from actors.placement.balancer import decide
from actors.placement.placement_change import Load, difference, drop, move, replicate, spread
from actors.placement.placement_messages import (
    ChangeRefused,
    ChangeReport,
    Drop,
    Move,
    PlacementChange,
    Rebalance,
    Replicate,
    Scale,
)
from configs.schema import WindroseConfig
from model.placement import ExpertPlacement, Pair

logger = logging.getLogger(__name__)

Outcome = ChangeReport | ChangeRefused


@dataclass(slots=True)
class _Wish:
    change: PlacementChange
    outcome: asyncio.Future[Outcome] = field(default_factory=asyncio.Future)


class LivePlacement:
    """Who is to hold which expert, and the changes of that. On the router's event loop."""

    def __init__(
        self,
        pipeline: str,
        config: WindroseConfig,
        crew: Crew,
        groups: Groups,
        target: ExpertPlacement,
        load: Callable[[], Load],
        on_wish: Callable[[], None],
    ) -> None:
        """`load()`: recent rows per [layer][expert]. `on_wish()`: `grant_next` has work to do."""
        self._pipeline = pipeline
        self._config = config
        self._crew = crew
        self._groups = groups
        self._load = load
        self._on_wish = on_wish
        self._wishes: list[_Wish] = []
        self._newest = target.version
        self._coming: ExpertPlacement | None = None
        self.target = target
        self.version = target.version  # the one in force: of the target, or of what is left of it
        self.torn = False  # some ranks may have gone over to what others have not: `meet` mends it
        self.outcomes = {"applied": 0, "unchanged": 0, "refused": 0, "failed": 0}

    @property
    def has_wishes(self) -> bool:
        """Whether a change waits to be made."""
        return bool(self._wishes)

    @property
    def ranks(self) -> list[int]:
        """The expert ranks that serve."""
        return list(self._crew.expert)

    @property
    def slots(self) -> int:
        """Experts of one layer that one rank may hold, for the balancer."""
        return self._slots(len(self._crew.expert))

    def _slots(self, num_ranks: int) -> int:
        copies = len(self.target.ranks[0]) + self._config.redundant_experts
        return math.ceil(copies / max(1, num_ranks))

    def share(self, rank: int) -> Sequence[Pair]:
        """What a rank is to hold when it begins."""
        return (self._coming or self.target).held_by(rank)

    def _among(self, target: ExpertPlacement, expert: Iterable[int]) -> ExpertPlacement:
        """A target among these ranks, under a version of its own."""
        self._newest += 1
        return in_force(target, tuple(expert), self._newest)

    async def meet(self) -> None:
        """Form the next epoch of the ranks that serve, which have left the one before.

        Raises:
            RayError: one died, or could not meet the others.
            TimeoutError: not within the peers' timeout.
        """
        placement = self._among(self.target, self._crew.expert)
        await self._groups.meet(self._crew.serving, placement)
        self.version = placement.version
        self.torn = False

    async def admit(self, newcomers: Mapping[int, Member]) -> None:
        """Go over to an epoch that these take part in beside those that serve.

        Raises as `meet` does; then the old epoch goes on.
        """
        crew = self._crew
        members = {**crew.serving, **newcomers}
        expert = [rank for rank in members if crew.role_of(rank) == "expert"]
        placement = self._among(self.target, expert)
        await self._switch(members, placement)
        self.version = placement.version

    async def _switch(self, members: Mapping[int, Member], placement: ExpertPlacement) -> None:
        epoch = await self._groups.form(members, placement)
        self.torn = True
        await self._groups.go_over(self._crew.serving, epoch)
        self.torn = False

    async def change(self, change: PlacementChange) -> Outcome:
        """Have a change made; returns when it is in force, or why it is not."""
        wish = _Wish(change)
        self._wishes.append(wish)
        self._on_wish()
        return await wish.outcome

    async def grant_next(self, missing: Sequence[int]) -> None:
        """Make the change that has waited longest; `missing` ranks have no actor at present."""
        wish = self._wishes.pop(0)
        outcome: Outcome = ChangeRefused(
            "an actor was lost meanwhile; the placement is as it was: try again"
        )
        key = "failed"
        try:
            if missing:
                raise ChangeRefused(f"rank {missing[0]} is being replaced: try again later")
            outcome = await self._make(wish.change)
            key = "applied" if outcome.applied else "unchanged"
        except ChangeRefused as refusal:
            outcome, key = refusal, "refused"
        except (RayError, TimeoutError) as error:
            outcome = ChangeRefused(f"the placement is as it was: {describe(error)}")
        finally:
            self._coming = None
            if isinstance(outcome, ChangeRefused):
                said = about("placement_change", applied=False)
                logger.warning("%s: %s", wish.change, outcome, extra=said)
            self.outcomes[key] += 1
            if not wish.outcome.done():
                wish.outcome.set_result(outcome)

    async def _make(self, change: PlacementChange) -> ChangeReport:
        begun, old, ranks = time.perf_counter(), self.target, list(self._crew.expert)
        load, reason = self._load(), ""
        match change:
            case Replicate():
                new = replicate(old, change, ranks, load)
            case Move():
                new = move(old, change, ranks, load)
            case Drop():
                new = drop(old, change, ranks, load)
            case Rebalance():
                decision = decide(load, old, ranks, self.slots, self._config.balance_min_gain)
                new, reason = decision.placement or old, decision.reason
            case Scale():
                new = await self._scale(change.expert_actors, load)
        added, dropped = difference(old, new)
        dry = isinstance(change, Rebalance) and change.dry_run
        if (added or dropped) and not dry and not isinstance(change, Scale):
            await self._rearrange(new)
        report = ChangeReport(
            pipeline=self._pipeline,
            placement_version=self.version,
            applied=self.target is not old,
            reason=reason or _said(len(added), len(dropped)),
            added=added,
            dropped=dropped,
            took_s=time.perf_counter() - begun,
        )
        kind = type(change).__name__.lower()
        said = about("placement_change", kind=kind, applied=report.applied, version=self.version)
        logger.info("%s in %.2f s: %s", change, report.took_s, report.reason, extra=said)
        return report

    async def _rearrange(self, new: ExpertPlacement) -> None:
        """Load what is added, let the attention ranks change over, give up what is dropped."""
        await self._hold(new, self._crew.expert)
        placement = self._among(new, self._crew.expert)
        self.torn = True
        # No timeout: a step may take as long as it will, and a rank that hangs is noticed.
        await all_of(m.handle.adopt.remote(placement) for m in self._crew.attention.values())
        self.torn = False
        self._take_effect(placement)
        self.trim()

    def _take_effect(self, placement: ExpertPlacement) -> None:
        self.target = placement
        self.version = placement.version

    async def _hold(self, new: ExpertPlacement, ranks: Iterable[int]) -> None:
        """Have ranks that serve hold their share of `new` beside what they hold."""
        loads = [
            self._crew.serving[rank].handle.hold.remote(new.held_by(rank))
            for rank in ranks
            if set(new.held_by(rank)) - set(self.target.held_by(rank))
        ]
        try:
            await all_of(loads, self._config.start_timeout_s)
        except (RayError, TimeoutError):
            self.trim()
            raise

    def trim(self) -> None:
        """Have every rank give up what the target does not give it; nobody waits for that.

        To be called only while no attention rank uses another placement than the target.
        """
        for rank, member in self._crew.expert.items():
            keeping = asyncio.ensure_future(member.handle.keep.remote(self.target.held_by(rank)))
            keeping.add_done_callback(forget)

    async def _scale(self, num_expert: int, load: Load) -> ExpertPlacement:
        """Serve with so many expert ranks; returns the new target, which is in force."""
        ranks = list(self._crew.expert)
        most = len(self.target.ranks[0])
        if not 1 <= num_expert <= most:
            raise ChangeRefused(
                f"expert_actors must be 1 to {most}, the experts of a layer, not {num_expert}",
                "expert_actors",
            )
        if num_expert == len(ranks):
            return self.target
        shortage = await self._crew.shortage(num_expert - len(ranks))
        if shortage is not None:
            raise ChangeRefused(f"no room for {num_expert} expert actors: {shortage}")
        first = min(ranks)
        unused = (rank for rank in range(first, first + most) if rank not in ranks)
        new_ranks = [next(unused) for _ in range(num_expert - len(ranks))]
        staying = ranks[:num_expert]
        new = spread(self.target, staying + new_ranks, load, self._slots(num_expert))
        self._coming = new
        try:
            await self._fill(new_ranks)
            await self._hold(new, staying)
            placement = self._among(new, staying + new_ranks)
            leaving = ranks[num_expert:]
            there = self._crew.serving | self._crew.ready
            members = {rank: member for rank, member in there.items() if rank not in leaving}
            await self._switch(members, placement)
        except BaseException:
            for rank in new_ranks:
                self._crew.retire(rank)
            # What the others have loaded stays until the next change or recovery: an epoch that was
            # offered with the new placement may still begin for a moment, after a loss.
            raise
        self._crew.join(new_ranks)
        self._take_effect(placement)
        for rank in leaving:
            self._crew.retire(rank)
        self.trim()
        return placement

    async def _fill(self, ranks: Sequence[int]) -> None:
        """Get actors for new ranks; returns once all are loaded.

        Raises:
            ChangeRefused: one could not be had.
        """
        for rank in ranks:
            self._crew.fill(rank, calm=True)
        while not all(rank in self._crew.ready for rank in ranks):
            for rank in ranks:
                if rank in self._crew.faults:
                    raise ChangeRefused(f"no actor for rank {rank}: {self._crew.faults[rank]}")
            await self._crew.changed()


def _said(num_added: int, num_dropped: int) -> str:
    if not num_added and not num_dropped:
        return "nothing was to be done"
    return f"{num_added} copies loaded, {num_dropped} given up"
