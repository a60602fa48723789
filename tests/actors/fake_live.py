"""The live placement of a pipeline over fake actors; the test stands for the supervisor.

Two attention ranks (0, 1) and two expert ranks (2, 3) with two experts of each layer each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.pipeline.crew import Crew
from actors.pipeline.groups import Groups
from actors.pipeline.live_placement import LivePlacement, Outcome
from actors.placement.placement_messages import (
    ChangeRefused,
    ChangeReport,
    PlacementChange,
)
from model.placement import ExpertPlacement, split_evenly
from tests.actors.fake_actors import FakeActor, World
from tests.actors.fake_pipeline import EXPERTS, LAYERS, FakeSpawner, actor_of, faked, new_config
from tests.actors.virtual_time import until


class Live:
    """The parts under test; the test is the supervisor."""

    def __init__(self, world: World, redundant_experts: int) -> None:
        config = new_config(2, 2, redundant_experts=redundant_experts)
        self.world = world
        self.crew = Crew(FakeSpawner(world), 2, 0, config.start_timeout_s, self.share)
        self.groups = Groups("host", 2, config.peer_timeout_s)
        self.load: list[list[float]] = []
        first = split_evenly(LAYERS, EXPERTS, [2, 3])
        self.live = LivePlacement(
            "p", config, self.crew, self.groups, first, lambda: self.load, lambda: None
        )

    def share(self, rank: int) -> list[tuple[int, int]]:
        return list(self.live.share(rank))

    def at(self, rank: int) -> FakeActor:
        return actor_of(self.crew.serving[rank])

    @property
    def target(self) -> ExpertPlacement:
        return self.live.target

    async def granted(self, change: PlacementChange) -> Outcome:
        """The change's outcome; it is granted at once."""
        wish = asyncio.ensure_future(self.live.change(change))
        await asyncio.sleep(0)
        assert self.live.has_wishes
        await self.live.grant_next(self.crew.filling)
        return await wish

    def held(self) -> dict[int, set[tuple[int, int]]]:
        return {rank: set(self.at(rank).held) for rank in self.crew.expert}

    def check(self) -> None:
        """All is well, and exactly what the target says."""
        assert not self.world.wrongs
        ranks = list(self.crew.expert)
        assert self.held() == {rank: set(self.target.held_by(rank)) for rank in ranks}
        epoch = self.world.epochs[self.groups.epoch]
        assert not epoch.broken
        for rank in self.crew.serving:
            assert self.at(rank).current is epoch
        for rank in self.crew.attention:
            used = self.at(rank)
            assert used.placement is not None and used.placement.ranks == self.target.ranks
            assert used.placement.version == self.live.version
            assert used.versions == sorted(set(used.versions))
        assert {actor_of(member) for member in self.crew.serving.values()} == set(self.world.alive)


@asynccontextmanager
async def serving(redundant_experts: int = 0) -> AsyncIterator[Live]:
    world = World()
    with faked(world):
        live = Live(world, redundant_experts)
        for rank in range(4):
            live.crew.fill(rank)
        await until(lambda: len(live.crew.ready) == 4)
        live.crew.join(list(live.crew.ready))
        await live.live.meet()
        live.check()
        world.calls.clear()
        yield live


def applied(outcome: Outcome) -> ChangeReport:
    assert isinstance(outcome, ChangeReport) and outcome.applied, outcome
    return outcome


def refused(outcome: Outcome) -> ChangeRefused:
    assert isinstance(outcome, ChangeRefused), outcome
    return outcome
