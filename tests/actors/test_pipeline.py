"""A pipeline's recoveries and changes as a whole, over fake actors. `test_pipeline_storm` goes on.

Two attention ranks (0, 1) and two expert ranks (2, 3), unless a test says otherwise.
"""

from __future__ import annotations

import asyncio

import pytest

from actors.placement.placement_messages import ChangeRefused, ChangeReport, Move, Scale
from tests.actors.fake_calls import HELD
from tests.actors.fake_pipeline import Rig, actor_of, kinds, requests, settle, supervised
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
