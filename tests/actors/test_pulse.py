"""What the router notices of its actors, and what it takes for calm."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
import torch
from ray.exceptions import ActorUnavailableError

from actors.pipeline.crew import Crew
from actors.pipeline.groups import Groups
from actors.pipeline.pulse import Pulse
from actors.ranks.actor_stats import ActorStats
from actors.ranks.rank_life import RankLife
from model.placement import ExpertPlacement
from tests.actors.fake_actors import FakeActor, World
from tests.actors.fake_pipeline import actor_of, faked, met
from tests.actors.virtual_time import run, turns

SILENCE_S = 10.0
NOTHING = ExpertPlacement(1, ())


class Watched:
    """Two attention ranks and two expert ranks in epoch 1, and a pulse that beats."""

    def __init__(self, world: World, crew: Crew, groups: Groups) -> None:
        self.world, self.crew, self.groups = world, crew, groups
        self.beats: list[Mapping[int, ActorStats]] = []
        self.pulse = Pulse(crew, SILENCE_S, self.beats.append)
        self.beat = asyncio.ensure_future(self.pulse.beat())
        self.trouble = asyncio.ensure_future(self.pulse.trouble(groups.epoch))

    def at(self, rank: int) -> FakeActor:
        return actor_of(self.crew.serving[rank])

    async def noticed(self, within_s: float = 0.01) -> bool:
        await asyncio.wait({self.trouble}, timeout=within_s)
        return self.trouble.done()


async def watched() -> Watched:
    world = World()
    with faked(world):
        crew = await met(world, 2, 2)
        groups = Groups("host", 2, SILENCE_S)
        await groups.meet(crew.serving, NOTHING)
    return Watched(world, crew, groups)


@pytest.mark.parametrize("rank", range(4))
def test_a_death_is_noticed_at_once(rank: int) -> None:
    async def scenario() -> None:
        all_ = await watched()
        assert not await all_.noticed(100.0)
        all_.at(rank).die()
        assert await all_.noticed()

    run(scenario())


def test_one_that_was_dead_before_is_noticed() -> None:
    async def scenario() -> None:
        all_ = await watched()
        all_.trouble.cancel()
        all_.at(3).die()
        all_.trouble = asyncio.ensure_future(all_.pulse.trouble(1))
        assert await all_.noticed()

    run(scenario())


def test_a_lost_peer_and_a_failed_loop_are_noticed_at_once() -> None:
    async def scenario() -> None:
        lost, failed = await watched(), await watched()
        lost.at(0).interrupt()
        failed.at(2).fail_loop()
        assert await lost.noticed()
        assert await failed.noticed()

    run(scenario())


def test_a_call_that_failed_by_itself_is_made_again() -> None:
    """Without experts apart no new epoch is formed: all that ended would tell of it for ever."""

    async def scenario() -> None:
        all_ = await watched()
        assert not await all_.noticed(1.0)
        all_.at(2).fail("watch", ActorUnavailableError("the connection was reset", None))
        del all_.at(2).modes["watch"]
        assert await all_.noticed()
        all_.trouble = asyncio.ensure_future(all_.pulse.trouble(1))
        assert not await all_.noticed(100.0)
        all_.at(2).die()
        assert await all_.noticed()

    run(scenario())


def test_a_move_is_no_trouble_but_a_death_after_it_is() -> None:
    async def scenario() -> None:
        all_ = await watched()
        with faked(all_.world):
            epoch = await all_.groups.form(all_.crew.serving, NOTHING)
            await all_.groups.go_over(all_.crew.serving, epoch)
        assert {all_.at(rank).current for rank in range(4)} == {all_.world.epochs[2]}
        assert not await all_.noticed(100.0)
        again = asyncio.ensure_future(all_.pulse.trouble(2))
        all_.at(1).die()
        await turns()
        assert again.done()

    run(scenario())


def test_a_hang_is_noticed_by_its_silence() -> None:
    async def scenario() -> None:
        all_ = await watched()
        await asyncio.sleep(5)
        all_.at(3).hang()
        assert not await all_.noticed(SILENCE_S - 1)
        assert await all_.noticed(4)

    run(scenario())


def test_a_short_silence_is_none() -> None:
    async def scenario() -> None:
        all_ = await watched()
        for _ in range(5):
            all_.at(3).hung = True
            await asyncio.sleep(SILENCE_S - 2)
            all_.at(3).hung = False
            await asyncio.sleep(3)
        assert not all_.trouble.done()

    run(scenario())


def test_calm_forgets_a_silence_that_was_dealt_with() -> None:
    async def scenario() -> None:
        all_ = await watched()
        all_.at(3).hang()
        assert await all_.noticed(20)
        del all_.crew.serving[3]
        all_.pulse.calm()
        all_.trouble = asyncio.ensure_future(all_.pulse.trouble(1))
        assert not await all_.noticed(100)

    run(scenario())


def test_every_beat_brings_the_stats_of_those_that_answer() -> None:
    async def scenario() -> None:
        all_ = await watched()
        all_.at(1).hang()
        await asyncio.sleep(4.5)
        assert len(all_.beats) == 4
        assert all(sorted(beat) == [0, 2, 3] for beat in all_.beats)
        assert [all_.beats[0][rank].identity.role for rank in (0, 2)] == ["attention", "expert"]

    run(scenario())


def test_a_rank_that_lost_an_epoch_says_so_even_if_it_has_lost_another_since() -> None:
    """What is left of a meeting that was given up may begin, and end, before anyone looks."""

    async def scenario() -> None:
        life = RankLife("expert rank 2", "host", torch.device("cpu"), lambda: None)
        life._event_loop = asyncio.get_running_loop()
        watch = asyncio.ensure_future(life.watch(1))
        await turns()
        life._left(1, False)
        life._left(2, False)
        assert await watch is False
        assert await life.watch(1) is False

    run(scenario())
