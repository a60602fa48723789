"""A whole pipeline, or its parts, over fake actors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from ray.util.placement_group import PlacementGroup

from actors.messages import GenerateRequest
from actors.model_plan import ModelPlan
from actors.pipeline.bundles import Kind, Role
from actors.pipeline.crew import Crew
from actors.pipeline.groups import Groups
from actors.pipeline.pipeline import Pipeline
from actors.pipeline.spawn import Member, Spawner
from actors.placement.placement_messages import ChangeReport, Replicate
from actors.scheduling.scheduler import SchedulerLimits
from configs.schema import WindroseConfig
from model.config import ModelConfig
from model.sampling_params import SamplingParams
from tests.actors.fake_actors import FakeActor, World
from tests.actors.virtual_time import turns, until

LAYERS, EXPERTS = 2, 4
MODEL = ModelConfig(
    hidden_size=8,
    num_layers=LAYERS,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    intermediate_size=8,
    num_experts=EXPERTS,
    top_k=2,
    vocab_size=32,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_ids=(2,),
)


@contextmanager
def faked(world: World) -> Iterator[None]:
    """Spawner, node address and store are the fakes'."""
    with (
        mock.patch("actors.pipeline.pipeline.Spawner", lambda *_: FakeSpawner(world)),
        mock.patch("ray.util.get_node_ip_address", lambda: "host"),
        mock.patch("actors.pipeline.groups.host_store", lambda *_: SimpleNamespace(port=1)),
    ):
        yield


def new_config(num_attention: int, num_expert: int, **settings: Any) -> WindroseConfig:
    """A config for fakes."""
    return WindroseConfig(
        model="m", attention_actors=num_attention, expert_actors=num_expert, **settings
    )


class FakeSpawner(Spawner):
    """Starts fakes, and notes whom it ended; nobody may be ended twice."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.spare_roles: list[set[Role]] = []  # of the next spares; all, when it is empty
        self.is_full = False  # nothing of the pipeline's own is free

    def shortage(self, count: int) -> str | None:
        return self.world.lacks

    def has_bundle(self, kind: Kind) -> bool:
        return not self.is_full

    def spawn(self, kind: Kind, *, calm: bool) -> Member:
        actor = FakeActor(self.world, f"{kind}/{len(self.world.actors)}")
        self.world.actors.append(actor)
        member = Member(actor.name, actor.handle, cast(PlacementGroup, None), 0)
        if kind == "spare" and self.spare_roles:
            return replace(member, roles=frozenset(self.spare_roles.pop(0)))
        return member

    def end(self, member: Member) -> None:
        actor = actor_of(member)
        if actor in self.world.ended:
            self.world.wrongs.append(f"{actor.name} was ended twice")
        self.world.ended.append(actor)
        actor.die()


def actor_of(member: Member) -> FakeActor:
    """The fake behind a member."""
    actor: FakeActor = member.handle.actor
    return actor


def kinds(actors: Iterable[FakeActor]) -> list[str]:
    """What they were started as."""
    return [actor.name.split("/")[0] for actor in actors]


class Rig:
    """A pipeline under test."""

    def __init__(self, num_attention: int, num_expert: int, **settings: Any) -> None:
        self.world = World()
        self.config = new_config(num_attention, num_expert, **settings)
        limits = SchedulerLimits(4, 16, 64, 4, (2,))
        args = ("float32", "cpu", limits, 1 << 20, num_attention, num_expert, 1, 1)
        self._plan = ModelPlan("m", MODEL, *args)
        self.has_experts = num_expert > 0

    def build(self) -> None:
        """Make the pipeline; within `faked`."""
        group = cast(PlacementGroup, None)
        self.pipeline = Pipeline("p", self.config, self._plan, group, "app")
        self.crew: Crew = self.pipeline._crew
        self.groups: Groups = self.pipeline._groups

    def at(self, rank: int) -> FakeActor:
        """The actor that serves as this rank."""
        return actor_of(self.crew.serving[rank])

    @property
    def serving(self) -> bool:
        """As the report has it."""
        return self.pipeline.report().serving

    def settled(self) -> bool:
        """Whether all is well: every rank there, alive, and in the epoch in force."""
        report, members = self.pipeline.report(), [actor_of(m) for m in self.crew.serving.values()]
        if not report.serving or report.filling or report.faults or self.crew.ready:
            return False
        if self.crew.num_spares < self.config.spare_actors:
            return False
        if any(one.hung or not one.alive or one.phase != "serving" for one in members):
            return False
        if not self.has_experts:
            return True
        epoch = self.world.epochs[self.groups.epoch]
        return not epoch.broken and all(one.current is epoch for one in members)

    def check(self) -> None:
        """Nobody was left behind, or ended twice; the placement is whole.

        Raises:
            AssertionError: says what is wrong.
        """
        assert not self.world.wrongs
        members = {actor_of(m) for m in self.crew.serving.values()}
        spares = {actor_of(m) for m in self.crew._spares.values()}
        assert set(self.world.alive) == members | spares
        assert set(self.world.ended) == set(self.world.actors) - members - spares
        assert self.crew.num_spares == self.config.spare_actors
        if not self.has_experts:
            return
        placement = self.pipeline._placement
        assert placement is not None
        ranks = set(self.crew.expert)
        for experts in placement.target.ranks:
            assert all(holders and set(holders) <= ranks for holders in experts)
        for rank in ranks:
            assert set(placement.target.held_by(rank)) == self.at(rank).held
        for rank in self.crew.attention:
            table = self.at(rank).placement
            assert table is not None and table.ranks == placement.target.ranks
            versions = self.at(rank).versions
            assert versions == sorted(set(versions))


@asynccontextmanager
async def supervised(rig: Rig) -> AsyncIterator[asyncio.Task[None]]:
    """Start the rig's pipeline, and supervise it meanwhile."""
    with faked(rig.world):
        rig.build()
        await rig.pipeline.start()
        supervisor = asyncio.get_running_loop().create_task(rig.pipeline.supervise())
        try:
            yield supervisor
        finally:
            supervisor.cancel()
            with suppress(asyncio.CancelledError, RuntimeError):
                await supervisor


async def met(world: World, num_attention: int, num_expert: int) -> Crew:
    """A crew whose ranks all are loaded and serve."""
    crew = Crew(FakeSpawner(world), num_attention, 0, 1800.0, lambda _rank: ())
    for rank in range(num_attention + num_expert):
        crew.fill(rank)
    await until(lambda: len(crew.ready) == num_attention + num_expert)
    crew.join(list(crew.ready))
    return crew


def requests(*names: str) -> list[GenerateRequest]:
    return [GenerateRequest(name, "ingress", (1,), SamplingParams(4, seed=0)) for name in names]


async def settle(rig: Rig, within_s: float = 600.0) -> None:
    """Wait until all is well, and see that nobody was left behind."""
    await until(rig.settled, within_s)
    await turns()
    rig.check()


async def replicated(rig: Rig) -> None:
    """Give every expert both holders."""
    for expert in range(EXPERTS):
        outcome = await rig.pipeline.change(Replicate(expert))
        assert isinstance(outcome, ChangeReport) and outcome.applied
    rig.world.calls.clear()
