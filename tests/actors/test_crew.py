"""Who has which rank: filling, retrying, retiring, and nobody left behind."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from ray.exceptions import RayActorError

from model.shards import CheckpointError
from tests.actors.fake_actors import World
from tests.actors.fake_calls import HELD, task_error
from tests.actors.fake_crew import LOAD_TIMEOUT_S, assert_ended, new_crew
from tests.actors.fake_pipeline import actor_of, kinds
from tests.actors.virtual_time import run, turns, until


def corrupt() -> Exception:
    return task_error(CheckpointError("model-1.safetensors: w1 is short"))


def now_s() -> float:
    return asyncio.get_running_loop().time()


def test_a_rank_is_ready_once_it_is_loaded() -> None:
    async def scenario() -> None:
        world = World()
        world.modes["load"] = HELD
        crew = new_crew(world)
        crew.fill(1)
        crew.fill(2)
        await turns()
        assert kinds(world.actors) == ["attention", "expert"]
        assert [call.args for call in world.calls] == [
            (1, True, (), False),
            (2, False, [(0, 2)], False),
        ]
        assert (crew.filling, crew.ready) == ([1, 2], {})
        change = crew.changed()
        world.actors[1].release("load")
        await change
        assert (crew.filling, list(crew.ready), list(crew.serving)) == ([1], [2], [])
        crew.join(list(crew.ready))
        assert (list(crew.ready), list(crew.expert), list(crew.attention)) == ([], [2], [])
        assert_ended(world)

    run(scenario())


def test_a_load_that_fails_is_tried_ever_more_slowly_and_told() -> None:
    async def scenario() -> None:
        world = World()
        world.modes["load"] = corrupt()
        crew = new_crew(world)
        crew.fill(2)
        begun_s = []
        for tries in range(1, 9):
            await crew.changed()
            begun_s.append(now_s())
            assert crew.faults[2].failures == tries
            assert str(crew.faults[2]) == "CheckpointError: model-1.safetensors: w1 is short"
            assert (crew.filling, list(crew.ready)) == ([2], [])
        pauses = [round(after - before, 3) for before, after in pairwise(begun_s)]
        assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
        world.modes.clear()
        await until(lambda: 2 in crew.ready)
        assert (crew.faults, crew.filling) == ({}, [])
        # Each try had an actor of its own, and gave it back.
        assert len(world.actors) == 9
        assert_ended(world, *(f"expert/{number}" for number in range(8)))

    run(scenario())


@pytest.mark.parametrize("error", [RayActorError(), None])
def test_a_load_that_dies_or_never_ends_is_tried_again(error: Exception | None) -> None:
    async def scenario() -> None:
        world = World()
        world.modes["load"] = error or HELD
        crew = new_crew(world)
        crew.fill(0)
        await crew.changed()
        assert now_s() == (LOAD_TIMEOUT_S if error is None else 0)
        assert isinstance(crew.faults[0].error, RayActorError if error else TimeoutError)
        world.modes.clear()
        await until(lambda: 0 in crew.ready)
        assert_ended(world, "attention/0")

    run(scenario())


def test_whoever_is_lost_is_ended_and_gets_a_successor() -> None:
    async def scenario() -> None:
        world = World()
        crew = new_crew(world)
        for rank in (0, 2):
            crew.fill(rank)
        await until(lambda: not crew.filling)
        crew.join(list(crew.ready))
        crew.fill(3)
        await until(lambda: 3 in crew.ready)
        crew.retire(2)
        crew.fill(2)
        crew.retire(3)
        crew.fill(3)
        assert (list(crew.serving), list(crew.ready), crew.filling) == ([0], [], [2, 3])
        await until(lambda: sorted(crew.ready) == [2, 3])
        assert_ended(world, "expert/1", "expert/2")
        assert {actor_of(member).name for member in crew.ready.values()} == {"expert/3", "expert/4"}

    run(scenario())


@pytest.mark.parametrize("turn", range(8))
def test_retiring_a_rank_ends_its_actor_whenever_that_is(turn: int) -> None:
    """Before it is asked for, while it loads, as it ends loading, and when it is ready."""

    async def scenario() -> None:
        world = World()
        world.modes["load"] = HELD
        crew = new_crew(world)
        crew.fill(2)
        if turn:
            await turns()
            world.actors[0].release("load")
            await turns(turn - 1)
        crew.retire(2)
        await turns()
        assert (list(crew.ready), list(crew.serving), crew.filling) == ([], [], [])
        assert not world.alive
        assert len(world.ended) == len(world.actors)
        assert not world.wrongs

    run(scenario())


@pytest.mark.parametrize("turn", range(8))
def test_a_rank_lost_at_any_moment_has_one_actor_in_the_end(turn: int) -> None:
    async def scenario() -> None:
        world = World()
        world.modes["load"] = HELD
        crew = new_crew(world)
        crew.fill(2)
        await turns()
        world.modes.clear()
        world.actors[0].release("load")
        await turns(turn)
        crew.retire(2)
        crew.fill(2)
        await turns()
        assert (list(crew.ready), crew.filling) == ([2], [])
        assert [actor.name for actor in world.alive] == ["expert/1"]
        assert actor_of(crew.ready[2]) is world.actors[1]
        assert_ended(world, "expert/0")

    run(scenario())


def test_retiring_between_two_tries_ends_the_trying_and_the_fault() -> None:
    async def scenario() -> None:
        world = World()
        world.modes["load"] = corrupt()
        crew = new_crew(world)
        crew.fill(2)
        await crew.changed()
        crew.retire(2)
        await asyncio.sleep(100)
        assert (crew.faults, crew.filling, len(world.actors)) == ({}, [], 1)
        assert_ended(world, "expert/0")

    run(scenario())


def test_the_end_leaves_nobody_alive() -> None:
    async def scenario() -> None:
        world = World()
        crew = new_crew(world, spares=1)
        crew.fill(0)
        crew.fill(2)
        await until(lambda: len(crew.ready) == 2)
        crew.join(list(crew.ready))
        crew.keep_spares()
        world.modes["load"] = HELD
        crew.fill(1)
        crew.keep_spares()
        crew.retire(2)
        crew.fill(2)
        await turns()
        crew.end()
        await turns()
        assert not world.alive
        assert len(world.ended) == len(world.actors) and not world.wrongs

    run(scenario())
