"""What a pipeline over fake actors serves while a rank is missing, and how its successor joins.

Two attention ranks (0, 1) and two expert ranks (2, 3).
"""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest

from actors.pipeline.live_placement import LivePlacement
from tests.actors.fake_calls import HELD
from tests.actors.fake_pipeline import Rig, replicated, requests, settle, supervised
from tests.actors.virtual_time import run, turns, until


def test_an_only_holders_death_is_waited_out() -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            rig.world.modes["load"] = HELD
            rig.at(3).die()
            await until(lambda: not rig.serving, 0.1)
            report = rig.pipeline.report()
            assert report.filling == (3,)
            assert report.obstacle == "expert 2 of layer 0 and 3 more has no holder left"
            asking = asyncio.ensure_future(rig.pipeline.submit(requests("a")))
            await asyncio.sleep(1.9)
            assert not asking.done()
            assert await asking == [None], "another pipeline may serve"
            await asyncio.sleep(60)
            assert not rig.serving
            asking = asyncio.ensure_future(rig.pipeline.submit(requests("a")))
            rig.world.actors[-1].release("load")
            await settle(rig)
            assert await asking == [rig.at(0).name]
            (recovery,) = rig.pipeline.report().recoveries
            assert (recovery.cause, recovery.dead) == ("death", (("expert", 3),))

    run(scenario())


def test_with_a_second_holder_the_others_serve_at_once_and_the_new_one_joins_them() -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            await replicated(rig)
            rig.world.modes["load"] = HELD
            rig.at(2).die()
            await until(lambda: rig.groups.epoch == 2, 0.1)
            assert rig.serving and list(rig.crew.serving) == [0, 1, 3]
            suspended = rig.world.called("suspend")
            await asyncio.sleep(30)
            rig.world.actors[-1].release("load")
            await settle(rig)
            assert rig.world.called("suspend") == suspended
            assert rig.world.called("move") == [("move", 0), ("move", 1)]
            assert len(rig.pipeline.report().recoveries) == 1

    run(scenario())


@pytest.mark.parametrize("turns_later", range(12))
def test_a_replacement_joins_in_whichever_turn_of_the_event_loop_it_gets_ready(
    turns_later: int,
) -> None:
    async def scenario() -> None:
        rig = Rig(2, 2, spare_actors=1)
        async with supervised(rig):
            replacement = rig.world.actors[-1]
            replacement.modes["load"] = HELD

            def answer(turns_left: int) -> None:
                if turns_left:
                    asyncio.get_running_loop().call_soon(answer, turns_left - 1)
                else:
                    replacement.release("load")

            # The recovery's last act: from then on the supervisor looks for its next job.
            with mock.patch.object(LivePlacement, "trim", lambda _self: answer(turns_later)):
                rig.at(0).die()
                await until(lambda: 0 in rig.crew.serving and rig.at(0) is replacement, 1.0)
            assert sorted(rig.crew.serving) == [0, 1, 2, 3]

    run(scenario())


@pytest.mark.parametrize("has_second_holder", [True, False])
def test_a_replacement_hurries_only_if_the_others_wait_for_it(has_second_holder: bool) -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            if has_second_holder:
                await replicated(rig)
            rig.at(3).die()
            await settle(rig)
            *_, calm = [call for call in rig.world.calls if call.method == "load"][-1].args
            assert calm is has_second_holder

    run(scenario())


def test_an_attention_rank_is_left_out_until_its_successor_joins() -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            rig.world.modes["load"] = HELD
            gone = rig.at(0).name
            rig.at(0).die()
            assert await rig.pipeline.submit(requests("a", "b")) == [None, rig.at(1).name]
            await until(lambda: rig.groups.epoch == 2, 0.1)
            assert set(await rig.pipeline.submit(requests("c", "d"))) == {rig.at(1).name}
            rig.world.actors[-1].release("load")
            await settle(rig)
            assert rig.at(0).name != gone
            assert await rig.pipeline.submit(requests("e")) == [rig.at(0).name]

    run(scenario())


def test_without_any_attention_rank_nothing_is_served_until_one_is_back() -> None:
    async def scenario() -> None:
        rig = Rig(2, 2, pipeline_wait_s=50.0)
        async with supervised(rig):
            rig.world.modes["load"] = HELD
            rig.at(0).die()
            rig.at(1).die()
            await until(lambda: not rig.serving, 0.1)
            assert rig.pipeline.report().obstacle == "no attention actor is left"
            assert await rig.pipeline.submit(requests("a")) == [None]
            rig.world.actors[-1].release("load")
            await until(lambda: rig.serving, 0.1)
            rig.world.actors[-2].release("load")
            await settle(rig)

    run(scenario())


def test_a_rank_that_is_ready_while_another_joins_joins_after_it() -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            await replicated(rig)
            rig.world.modes["load"] = HELD
            rig.at(0).die()
            rig.at(3).die()
            await until(lambda: rig.groups.epoch == 2, 1)
            first, second = rig.world.alive[-2:]
            rig.at(1).modes["meet"] = HELD
            first.release("load")
            await until(lambda: bool(first.waiting("meet")), 1)
            second.release("load")
            await turns()
            rig.at(1).release("meet")
            await asyncio.sleep(5)
            await settle(rig)

    run(scenario())


def test_who_is_ready_is_kept_where_one_that_serves_dies_as_it_joins() -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            await replicated(rig)
            rig.world.modes["load"] = HELD
            rig.at(3).die()
            await until(lambda: rig.groups.epoch == 2, 1)
            newcomer = rig.world.alive[-1]
            rig.at(0).modes["meet"] = HELD  # the meeting takes its time
            newcomer.release("load")
            await until(lambda: bool(rig.at(0).waiting("meet")), 1)
            rig.at(2).die()
            await turns()
            rig.at(0).release("meet")
            await until(lambda: rig.serving, 10)
            assert newcomer.alive and rig.at(3) is newcomer
            for waiting in rig.world.alive:
                waiting.release("load")
            await settle(rig)

    run(scenario())
