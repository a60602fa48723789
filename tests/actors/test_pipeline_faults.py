"""A pipeline over fake actors where something stays wrong: it is told, and the rest goes on."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import RayActorError

from actors.placement.placement_messages import ChangeRefused, Scale
from model.shards import CheckpointError
from tests.actors.fake_calls import HELD, task_error
from tests.actors.fake_pipeline import Rig, faked, replicated, requests, settle, supervised
from tests.actors.virtual_time import run, turns, until


def corrupt() -> Exception:
    return task_error(CheckpointError("model-1.safetensors: w1 is short"))


@pytest.mark.parametrize("error", [corrupt(), RayActorError()])
def test_a_start_that_cannot_be_fails_with_the_error(error: Exception) -> None:
    async def scenario() -> None:
        rig = Rig(1, 1)
        rig.world.modes["load"] = error
        with faked(rig.world):
            rig.build()
            with pytest.raises(type(error)):
                await rig.pipeline.start()
            tries = 3 if isinstance(error, RayActorError) else 1
            assert len(rig.world.actors) <= 2 * tries
            await rig.pipeline.stop()
            await turns()
            assert not rig.world.alive

    run(scenario())


def test_a_start_whose_first_meeting_cannot_be_fails_in_time() -> None:
    async def scenario() -> None:
        rig = Rig(1, 1, start_timeout_s=300.0)
        rig.world.modes["meet"] = HELD
        with faked(rig.world):
            rig.build()
            start = asyncio.ensure_future(rig.pipeline.start())
            await until(lambda: len(rig.world.called("meet")) == 2)
            rig.world.modes = {"load": corrupt()}
            rig.world.actors[1].die()
            await asyncio.wait({start}, timeout=600)
            assert start.done(), "it is still trying"
            assert start.exception() is not None
            await rig.pipeline.stop()

    run(scenario())


def test_who_cannot_be_replaced_is_told_and_the_holders_left_serve_on() -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            await replicated(rig)
            rig.world.modes["load"] = corrupt()
            rig.at(3).die()
            await asyncio.sleep(3600)
            report = rig.pipeline.report()
            assert (report.serving, report.obstacle, report.filling) == (True, None, (3,))
            assert report.faults == {3: "CheckpointError: model-1.safetensors: w1 is short"}
            assert await rig.pipeline.submit(requests("a")) == [rig.at(0).name]
            outcome = await rig.pipeline.change(Scale(1))
            assert isinstance(outcome, ChangeRefused) and "rank 3" in str(outcome)
            rig.world.modes.clear()
            await settle(rig)

    run(scenario())


def test_trying_again_for_hours_leaves_no_calls_at_the_others() -> None:
    """An actor takes 1000 calls at once, and a call whose future is given up goes on."""

    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            await replicated(rig)
            rig.world.modes["load"] = corrupt()
            rig.at(3).die()
            await asyncio.sleep(3600)
            assert max(len(actor.pending) for actor in rig.world.alive) < 20

    run(scenario())


def test_who_cannot_be_replaced_nor_done_without_is_told() -> None:
    async def scenario() -> None:
        rig = Rig(2, 2, pipeline_wait_s=7.0)
        async with supervised(rig):
            rig.world.modes["load"] = corrupt()
            rig.at(3).die()
            await asyncio.sleep(100)
            report = rig.pipeline.report()
            assert not report.serving and list(report.faults) == [3]
            assert report.obstacle == "expert 2 of layer 0 and 3 more has no holder left"
            loop = asyncio.get_running_loop()
            begun_s = loop.time()
            assert await rig.pipeline.submit(requests("a")) == [None]  # maybe another can
            assert loop.time() - begun_s == pytest.approx(2.0)
            rig.world.modes.clear()
            await settle(rig)

    run(scenario())


def test_a_link_that_is_lost_again_and_again_is_given_up() -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig) as supervisor:
            rig.at(3).interrupt()
            await settle(rig)
            assert [r.cause for r in rig.pipeline.report().recoveries] == ["link"]
            rig.at(3).modes["meet"] = task_error(RuntimeError("connection refused"))
            rig.at(3).interrupt()
            with pytest.raises(RuntimeError, match="could not meet 5 times"):
                await asyncio.wait_for(asyncio.shield(supervisor), 100)
            assert not rig.serving
            assert len(rig.world.actors) == 4

    run(scenario())
