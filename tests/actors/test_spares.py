"""Spares: they take the ranks that they can have, and are replaced when they are gone."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import RayActorError

from actors.pipeline.crew import Crew
from tests.actors.fake_actors import World
from tests.actors.fake_calls import HELD
from tests.actors.fake_crew import LOAD_TIMEOUT_S, assert_ended, new_crew
from tests.actors.fake_pipeline import FakeSpawner, actor_of, kinds
from tests.actors.virtual_time import run, turns, until


def test_a_spare_takes_the_rank_and_another_is_started() -> None:
    async def scenario() -> None:
        world = World()
        crew = new_crew(world, spares=1)
        crew.keep_spares()
        crew.keep_spares()
        await turns()
        assert (kinds(world.actors), crew.num_spares) == (["spare"], 1)
        crew.fill(2)
        await turns()
        assert (actor_of(crew.ready[2]), crew.num_spares) == (world.actors[0], 0)
        crew.keep_spares()
        await turns()
        assert (kinds(world.actors), crew.num_spares) == (["spare", "spare"], 1)
        # Its guard no longer waits for it: its death is its rank's affair.
        world.actors[0].die()
        await turns()
        assert_ended(world)

    run(scenario())


def test_a_spare_that_dies_is_replaced() -> None:
    async def scenario() -> None:
        world = World()
        crew = new_crew(world, spares=2)
        crew.keep_spares()
        await turns()
        world.actors[0].die()
        await until(lambda: len(world.actors) == 3)
        assert (kinds(world.actors), crew.num_spares) == (["spare"] * 3, 2)
        assert_ended(world, "spare/0")
        crew.fill(0)
        await turns()
        assert actor_of(crew.ready[0]).alive

    run(scenario())


def test_spares_asked_for_later_are_started_then_unless_all_is_over() -> None:
    async def scenario(ends: bool) -> None:
        world = World()
        crew = new_crew(world, spares=1)
        crew.keep_spares_in(5.0)
        await asyncio.sleep(4.9)
        assert not world.actors
        if ends:
            crew.end()
        await asyncio.sleep(0.2)
        assert kinds(world.actors) == ([] if ends else ["spare"])

    run(scenario(ends=False))
    run(scenario(ends=True))


def test_spares_that_die_at_once_are_not_started_as_fast_as_they_die() -> None:
    async def scenario() -> None:
        world = World()
        world.modes["taken"] = RayActorError()
        new_crew(world, spares=1).keep_spares()
        await turns(200)
        assert len(world.actors) < 10

    run(scenario())


def test_a_spare_that_dies_while_it_loads_is_ended_once() -> None:
    async def scenario() -> None:
        world = World()
        world.modes["load"] = HELD
        crew = new_crew(world, spares=1)
        crew.keep_spares()
        await turns()
        crew.fill(3)
        await turns()
        world.actors[0].die()
        world.modes.clear()
        await until(lambda: 3 in crew.ready)
        assert kinds(world.actors) == ["spare", "expert"]
        assert_ended(world, "spare/0")

    run(scenario())


def test_a_spare_is_only_taken_for_a_role_that_it_can_have() -> None:
    async def scenario() -> None:
        world = World()
        spawner = FakeSpawner(world)
        spawner.spare_roles = [{"attention", "expert"}, {"expert"}]
        crew = Crew(spawner, 2, 2, LOAD_TIMEOUT_S, lambda rank: [(0, rank)])
        crew.keep_spares()
        await turns()
        crew.fill(3)
        await turns()
        assert actor_of(crew.ready[3]) is world.actors[1]  # the one that can do no more
        spawner.spare_roles = [{"expert"}]
        crew.keep_spares()
        crew.fill(0)
        await turns()
        assert actor_of(crew.ready[0]) is world.actors[0]
        crew.fill(1)
        await turns()
        assert kinds(world.actors) == ["spare", "spare", "spare", "attention"]
        assert actor_of(crew.ready[1]) is world.actors[3]
        assert crew.num_spares == 1

    run(scenario())


def test_a_spare_for_which_there_is_no_place_is_not_waited_for() -> None:
    async def scenario() -> None:
        world = World()
        world.modes["stats"] = HELD  # Ray has not started it
        spawner = FakeSpawner(world)
        crew = Crew(spawner, 2, 1, LOAD_TIMEOUT_S, lambda rank: [(0, rank)])
        crew.keep_spares()
        await asyncio.sleep(31.0)
        assert crew.num_spares == 0
        crew.fill(2)
        await turns()
        assert kinds(world.actors) == ["spare", "expert"]
        assert actor_of(crew.ready[2]) is world.actors[1]
        world.modes.clear()
        world.actors[0].release("stats")
        await turns()
        assert crew.num_spares == 1
        crew.fill(3)
        await turns()
        assert actor_of(crew.ready[3]) is world.actors[0]

    run(scenario())


@pytest.mark.parametrize("is_full", [False, True])
def test_a_spare_that_is_being_started_is_waited_for(is_full: bool) -> None:
    """For a while; for longer only where no other would have a place."""

    async def scenario() -> None:
        world = World()
        world.modes["stats"] = HELD
        spawner = FakeSpawner(world)
        spawner.is_full = is_full
        crew = Crew(spawner, 2, 1, LOAD_TIMEOUT_S, lambda rank: [(0, rank)])
        crew.keep_spares()
        await asyncio.sleep(100.0 if is_full else 1.0)
        crew.fill(2)
        await turns()
        world.modes.clear()
        world.actors[0].release("stats")
        await turns()
        assert kinds(world.actors) == ["spare"]
        assert actor_of(crew.ready[2]) is world.actors[0]
        assert crew.num_spares == 0

    run(scenario())


def test_only_spares_that_are_up_make_room_for_more_experts() -> None:
    class Counting(FakeSpawner):
        def shortage(self, count: int) -> str | None:
            return f"{count} more"

    async def scenario() -> None:
        world = World()
        world.modes["stats"] = HELD
        crew = Crew(Counting(world), 2, 2, LOAD_TIMEOUT_S, lambda rank: [(0, rank)])
        crew.keep_spares()
        await turns()
        assert await crew.shortage(3) == "3 more"
        world.actors[0].release("stats")
        await turns()
        assert await crew.shortage(3) == "2 more"

    run(scenario())


def test_a_spare_that_froze_while_it_waited_is_given_up() -> None:
    async def scenario() -> None:
        world = World()
        crew = new_crew(world, spares=1)
        crew.keep_spares()
        await turns()
        world.actors[0].hang()
        crew.fill(3)
        await asyncio.sleep(25.0)
        assert 3 not in crew.ready
        await until(lambda: 3 in crew.ready, 10.0)
        assert kinds(world.actors) == ["spare", "expert"]
        assert_ended(world, "spare/0")

    run(scenario())


def test_a_spare_that_was_begun_and_does_not_come_is_soon_done_without() -> None:
    async def scenario() -> None:
        world = World()
        world.modes["stats"] = HELD
        crew = new_crew(world, spares=1)
        crew.keep_spares()
        await asyncio.sleep(1.0)
        crew.fill(2)
        await asyncio.sleep(9.0)
        assert 2 not in crew.ready
        await until(lambda: 2 in crew.ready, 3.0)
        assert kinds(world.actors) == ["spare", "expert"]
        assert_ended(world, "spare/0")

    run(scenario())
