"""More and fewer expert ranks while others serve, and changes that are interrupted.

Two attention ranks (0, 1) and two expert ranks (2, 3) with two experts of each layer each.
"""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import RayActorError

from actors.placement.placement_messages import (
    Move,
    PlacementChange,
    Scale,
)
from model.shards import CheckpointError
from tests.actors.fake_calls import HELD, task_error
from tests.actors.fake_live import applied, refused, serving
from tests.actors.fake_pipeline import EXPERTS, LAYERS
from tests.actors.virtual_time import run, turns

INTERRUPTIBLE: list[tuple[PlacementChange, str, int]] = [
    (Move(0, to=3), "hold", 3),
    (Move(0, to=3), "adopt", 1),
    (Scale(3), "load", 4),
    (Scale(3), "meet", 0),
    (Scale(3), "meet", 4),
    (Scale(3), "move", 1),
    (Scale(1), "hold", 2),
    (Scale(1), "meet", 1),
    (Scale(1), "watch", 3),
]


@pytest.mark.parametrize(("change", "method", "rank"), INTERRUPTIBLE)
def test_an_interrupted_change_leaves_the_target_and_an_answer(
    change: PlacementChange, method: str, rank: int
) -> None:
    async def scenario() -> None:
        async with serving() as live:
            before, version = live.target, live.live.version
            if rank < 4:
                live.at(rank).modes[method] = HELD
            else:
                live.world.modes[method] = HELD
            wish = asyncio.ensure_future(live.live.change(change))
            await turns()
            grant = asyncio.ensure_future(live.live.grant_next([]))
            await turns()
            assert live.world.called(method) and not grant.done()
            grant.cancel()
            with pytest.raises(asyncio.CancelledError):
                await grant
            assert "an actor was lost meanwhile" in str(refused(await wish))
            assert live.target is before and live.live.version == version
            assert (list(live.crew.serving), live.crew.filling) == ([0, 1, 2, 3], [])
            assert not live.crew.ready
            # What the supervisor does next: all leave, and meet again.
            for each in live.world.alive:
                for name in ("hold", "adopt", "meet", "move", "watch"):
                    each.release(name)
                each.interrupt()
            await live.live.meet()
            live.live.trim()
            await turns()
            live.check()
            live.world.modes.clear()
            applied(await live.granted(change))
            await turns()
            live.check()

    run(scenario())


def test_more_ranks_come_in_without_interrupting_the_others() -> None:
    async def scenario() -> None:
        async with serving() as live:
            report = applied(await live.granted(Scale(4)))
            await turns()
            order = [method for method, _ in live.world.called("load", "meet", "move", "keep")]
            assert order == ["load"] * 2 + ["meet"] * 6 + ["move"] * 2 + ["keep"] * 4
            assert live.world.called("suspend") == []
            assert (list(live.crew.expert), report.dropped != ()) == ([2, 3, 4, 5], True)
            assert {rank for _, _, rank in report.added} == {4, 5}
            live.check()
            applied(await live.granted(Scale(1)))
            await turns()
            assert list(live.crew.expert) == [2]
            assert len(live.at(2).held) == LAYERS * EXPERTS
            assert {actor.rank for actor in live.world.ended} == {3, 4, 5}
            live.check()
            applied(await live.granted(Scale(3)))
            await turns()
            live.check()

    run(scenario())


@pytest.mark.parametrize("error", [task_error(CheckpointError("w1 is short")), RayActorError()])
def test_a_newcomer_that_cannot_load_is_given_up(error: Exception) -> None:
    async def scenario() -> None:
        async with serving() as live:
            before = live.target
            live.world.modes["load"] = error
            refusal = refused(await live.granted(Scale(4)))
            await turns()
            assert "no actor for rank 4" in str(refusal) and refusal.param is None
            assert live.target is before and live.groups.epoch == 1
            assert not live.crew.filling and not live.crew.faults
            live.check()

    run(scenario())


def test_newcomers_that_cannot_meet_are_given_up_and_the_old_epoch_goes_on() -> None:
    async def scenario() -> None:
        async with serving() as live:
            before = live.target
            live.world.modes["meet"] = HELD
            refused(await live.granted(Scale(3)))
            await turns()
            assert live.target is before and live.groups.epoch == 1
            live.check()
            live.world.modes.clear()
            applied(await live.granted(Scale(3)))
            await turns()
            live.check()

    run(scenario())
