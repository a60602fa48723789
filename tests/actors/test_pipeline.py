"""A pipeline's recoveries and changes as a whole, over fake actors. `test_pipeline_storm` goes on.

Two attention ranks (0, 1) and two expert ranks (2, 3), unless a test says otherwise.
"""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest

from actors.pipeline.live_placement import LivePlacement
from actors.placement.placement_messages import ChangeRefused, ChangeReport, Move, Scale
from tests.actors.fake_actors import HELD
from tests.actors.fake_pipeline import (
    Rig,
    actor_of,
    kinds,
    replicated,
    requests,
    settle,
    supervised,
)
from tests.actors.virtual_time import run, turns, until


@pytest.mark.parametrize(("num_attention", "num_expert"), [(1, 0), (2, 0), (1, 1), (2, 2), (1, 4)])
def test_a_pipeline_starts_and_rests(num_attention: int, num_expert: int) -> None:
    async def scenario() -> None:
        rig = Rig(num_attention, num_expert, spare_actors=1)
        async with supervised(rig) as supervisor:
            await settle(rig)
            assert list(rig.crew.serving) == list(range(num_attention + num_expert))
            report, quiet = rig.pipeline.report(), len(rig.world.called("meet", "load"))
            assert (report.obstacle, report.recoveries, report.num_spares) == (None, (), 1)
            assert quiet == (2 if num_expert else 1) * (num_attention + num_expert)
            await asyncio.sleep(100)
            assert len(rig.world.called("meet", "load")) == quiet
            assert not supervisor.done()
            await rig.pipeline.stop()
            await turns()
            assert not rig.world.alive

    run(scenario())


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
            await asyncio.sleep(60)
            assert not rig.serving and not asking.done()
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
            with pytest.raises(TimeoutError):
                await rig.pipeline.submit(requests("a"))
            rig.world.actors[-1].release("load")
            await until(lambda: rig.serving, 0.1)
            rig.world.actors[-2].release("load")
            await settle(rig)

    run(scenario())


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("noticed_after_s", [None, 3.0])
def test_who_hangs_is_replaced(rank: int, noticed_after_s: float | None) -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            rig.at(rank).hang(noticed_after_s)
            await until(lambda: not rig.serving, 15)
            await settle(rig)
            (recovery,) = rig.pipeline.report().recoveries
            assert (recovery.cause, [at for _, at in recovery.dead]) == ("hang", [rank])

    run(scenario())


def test_a_loop_that_failed_is_a_death() -> None:
    async def scenario() -> None:
        for rig in (Rig(2, 2), Rig(2, 0)):
            async with supervised(rig):
                rig.at(1).fail_loop()
                await until(lambda rig=rig: not rig.settled(), 1)  # type: ignore[misc]
                await settle(rig)
                assert rig.pipeline.report().recoveries[0].cause == "death"

    run(scenario())


def test_a_death_during_the_meeting_is_one_recovery() -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            rig.at(0).modes["meet"] = HELD
            rig.at(2).die()
            await until(lambda: len(rig.world.called("meet")) == 8)
            rig.at(3).die()
            rig.at(0).release("meet")
            await settle(rig)
            (recovery,) = rig.pipeline.report().recoveries
            assert recovery.dead == (("expert", 2), ("expert", 3))

    run(scenario())


def test_a_death_while_another_is_waited_out_is_noticed_before_that_is_over() -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            rig.world.modes["load"] = HELD
            rig.at(2).die()
            await until(lambda: not rig.serving, 0.1)
            await asyncio.sleep(20)
            rig.at(3).die()
            await asyncio.sleep(20)
            assert kinds(rig.world.actors[4:]) == ["expert", "expert"]
            for actor in rig.world.alive:
                actor.release("load")
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


def test_two_deaths_at_once_are_one_recovery() -> None:
    async def scenario() -> None:
        rig = Rig(2, 2, spare_actors=1)
        async with supervised(rig):
            rig.at(1).die()
            rig.at(3).die()
            await settle(rig)
            first = rig.pipeline.report().recoveries[0]
            assert first.dead == (("attention", 1), ("expert", 3))
            assert sorted(kinds(rig.world.actors[5:])) in (
                ["attention", "spare"],
                ["expert", "spare"],
            )

    run(scenario())


@pytest.mark.parametrize("method", ["hold", "adopt"])
def test_a_death_during_a_change_refuses_it_and_is_mended(method: str) -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            await asyncio.sleep(1)
            before = rig.pipeline.report().target
            rig.at(0 if method == "adopt" else 3).modes[method] = HELD
            change = asyncio.ensure_future(rig.pipeline.change(Move(0, to=3)))
            await until(lambda: bool(rig.world.called(method)), 1)
            rig.at(2).die()
            outcome = await change
            assert isinstance(outcome, ChangeRefused) and outcome.param is None
            await settle(rig)
            assert rig.pipeline.report().target == before
            assert rig.pipeline.report().changes == {
                "applied": 0,
                "unchanged": 0,
                "refused": 0,
                "failed": 1,
            }

    run(scenario())


def test_requests_go_to_the_attention_ranks_with_least_to_do() -> None:
    async def scenario() -> None:
        rig = Rig(3, 1)
        async with supervised(rig):
            names = await rig.pipeline.submit(requests(*"abcde"))
            counts = [len(rig.at(rank).submitted) for rank in range(3)]
            assert (len(names), counts) == (5, [2, 2, 1])
            # Those without new work are told too, so that they join the step.
            await rig.pipeline.submit(requests("f"))
            assert len(rig.world.called("submit")) == 6
            assert len(rig.at(2).submitted) == 2

    run(scenario())


def test_colocated_ranks_never_meet_and_each_is_replaced_alone() -> None:
    async def scenario() -> None:
        rig = Rig(2, 0)
        async with supervised(rig):
            rig.world.modes["load"] = HELD
            rig.at(0).die()
            await until(lambda: 0 not in rig.crew.serving, 1)
            assert rig.serving
            assert await rig.pipeline.submit(requests("a")) == [actor_of(rig.crew.serving[1]).name]
            rig.world.actors[-1].release("load")
            await settle(rig)
            assert rig.world.called("meet", "move", "keep") == []
            outcome = await rig.pipeline.change(Scale(2))
            assert isinstance(outcome, ChangeRefused) and "expert_actors is 0" in str(outcome)

    run(scenario())


def test_a_scale_that_takes_a_spare_is_followed_by_another_spare() -> None:
    async def scenario() -> None:
        rig = Rig(2, 2, spare_actors=1)
        async with supervised(rig):
            outcome = await rig.pipeline.change(Scale(3))
            assert isinstance(outcome, ChangeReport)
            await asyncio.sleep(10)
            await settle(rig)

    run(scenario())
