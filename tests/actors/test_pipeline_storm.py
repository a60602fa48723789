"""A pipeline over fake actors when much happens at once: slow steps, bad moments, long storms."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from unittest import mock

import pytest

from actors.placement.placement_messages import (
    ChangeRefused,
    Drop,
    Move,
    PlacementChange,
    Rebalance,
    Replicate,
    Scale,
)
from model.shards import CheckpointError
from tests.actors.fake_calls import HELD, task_error
from tests.actors.fake_pipeline import EXPERTS, Rig, settle, supervised
from tests.actors.virtual_time import run, turns, until

LONG_STEP_S = 15.0  # longer than the peers' timeout, though each of its messages is in time


def work_long(rig: Rig, rank: int) -> None:
    """Let an attention rank be in a step of `LONG_STEP_S` from now on."""
    actor = rig.at(rank)
    actor.busy = True
    asyncio.get_running_loop().call_later(LONG_STEP_S, actor.rest)


@pytest.mark.parametrize("change", [Move(0, to=3), Scale(3), Scale(1)], ids=str)
def test_a_long_step_may_fail_a_change_but_never_stalls_the_pipeline(
    change: PlacementChange,
) -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            await asyncio.sleep(1)
            work_long(rig, 1)
            await rig.pipeline.change(change)
            await asyncio.sleep(60)
            await settle(rig)

    run(scenario())


@pytest.mark.parametrize("rank", [0, 3])
def test_a_long_step_while_a_rank_comes_back_never_stalls_the_pipeline(rank: int) -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            for expert in range(EXPERTS):
                await rig.pipeline.change(Replicate(expert))
            rig.world.modes["load"] = HELD
            rig.at(rank).die()
            await until(lambda: rig.groups.epoch == 2)
            work_long(rig, 1)
            rig.world.actors[-1].release("load")
            await asyncio.sleep(60)
            await settle(rig)

    run(scenario())


@pytest.mark.parametrize("turn", range(12))
@pytest.mark.parametrize(
    ("change", "method", "rank"),
    [(Move(0, to=3), "hold", 3), (Scale(3), "meet", 4), (Scale(3), "load", 4)],
    ids=str,
)
def test_a_death_as_a_part_of_a_change_ends_is_mended_at_once(
    change: PlacementChange, method: str, rank: int, turn: int
) -> None:
    """The answer that a change waits for and the news of a death come within a few turns."""

    async def scenario() -> None:
        rig = Rig(2, 2)
        async with supervised(rig):
            await asyncio.sleep(1)
            if rank < 4:
                rig.at(rank).modes[method] = HELD
            else:
                rig.world.modes[method] = HELD
            asking = asyncio.ensure_future(rig.pipeline.change(change))
            await until(lambda: (method, rank) in rig.world.called(method), 1)
            actor = next(one for one in rig.world.alive if one.rank == rank)
            rig.world.modes.clear()
            rig.at(2).die()
            await turns(turn)
            actor.release(method)
            await turns()
            await settle(rig, within_s=1)
            await asking

    run(scenario())


def test_a_fault_in_what_looks_at_the_stats_does_not_hide_hangs() -> None:
    async def scenario() -> None:
        rig = Rig(2, 2)
        with mock.patch(
            "actors.pipeline.balance_watch.BalanceWatch.look", side_effect=ZeroDivisionError
        ):
            async with supervised(rig) as supervisor:
                await asyncio.sleep(3)
                if not supervisor.done():  # else the pipeline is replaced as a whole
                    rig.at(3).hang()
                    await until(lambda: not rig.serving, 20)
                    await settle(rig)

    run(scenario())


def test_an_interrupted_change_leaves_no_complaint_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(None)
        rig = Rig(2, 2)
        async with supervised(rig):
            rig.at(3).modes["hold"] = HELD
            asking = asyncio.ensure_future(rig.pipeline.change(Move(0, to=3)))
            await until(lambda: bool(rig.world.called("hold")), 1)
            rig.at(2).die()
            assert isinstance(await asking, ChangeRefused)
            await settle(rig)

    run(scenario())
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


class Storm:
    """Random events, seeded; at most one kind of trouble that does not pass by itself."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig, self.random = rig, random.Random(seed)
        self.asked: list[asyncio.Future[object]] = []
        world, uniform = rig.world, self.random.uniform
        world.reply_s = lambda: self.random.choice([0.0, 0.0, uniform(0, 0.05)])
        world.read_s = lambda: self.random.choice([0.0, uniform(0, 5)])

    def step(self) -> None:
        """One event."""
        events: list[tuple[int, Callable[[], None]]] = [
            (4, self.death),
            (1, self.two_deaths),
            (1, self.hang),
            (2, self.link),
            (1, self.failed_loop),
            (1, self.long_step),
            (2, self.bad_loads),
            (3, self.good_loads),
            (6, self.change),
            (2, self.wait),
        ]
        weights, actions = zip(*events, strict=True)
        self.random.choices(actions, weights)[0]()

    def any_rank(self) -> int | None:
        ranks = [
            rank for rank, member in self.rig.crew.serving.items() if member.handle.actor.alive
        ]
        return self.random.choice(ranks) if ranks else None

    def death(self) -> None:
        alive = self.rig.world.alive  # spares and those that load too
        if alive:
            self.random.choice(alive).die()

    def two_deaths(self) -> None:
        self.death()
        self.death()

    def hang(self) -> None:
        rank = self.any_rank()
        if rank is not None:
            self.rig.at(rank).hang(self.random.choice([None, 1.0, 10.0]))

    def link(self) -> None:
        rank = self.any_rank()
        if rank is not None:
            self.rig.at(rank).interrupt()

    def failed_loop(self) -> None:
        rank = self.any_rank()
        if rank is not None:
            self.rig.at(rank).fail_loop()

    def long_step(self) -> None:
        rank = self.any_rank()
        if rank is not None and self.rig.at(rank).is_attention:
            work_long(self.rig, rank)

    def bad_loads(self) -> None:
        self.rig.world.modes["load"] = task_error(CheckpointError("w1 is short"))

    def good_loads(self) -> None:
        self.rig.world.modes.clear()

    def wait(self) -> None:
        """Nothing happens."""

    def change(self) -> None:
        expert, rank = self.random.randrange(EXPERTS), self.random.randint(2, 5)
        changes: list[PlacementChange] = [
            Replicate(expert),
            Move(expert, to=rank),
            Drop(expert),
            Rebalance(),
            Scale(self.random.randint(1, EXPERTS)),
        ]
        change = self.random.choice(changes)
        self.asked.append(asyncio.ensure_future(self.rig.pipeline.change(change)))


@pytest.mark.parametrize("num_expert", [2, 0])
@pytest.mark.parametrize("seed", range(12))
def test_after_any_storm_all_is_well(num_expert: int, seed: int) -> None:
    async def scenario() -> None:
        rig = Rig(2, num_expert, spare_actors=seed % 3)
        async with supervised(rig) as supervisor:
            storm = Storm(rig, seed)
            for _ in range(200):
                storm.step()
                pause_s = storm.random.choice([0.0, 0.0, 0.003, 0.02, 0.3, 3.0, 20.0])
                await asyncio.sleep(pause_s)
                assert not supervisor.done()
                assert not rig.world.wrongs
            storm.good_loads()
            await asyncio.sleep(120)
            await settle(rig)
            assert all(asked.done() for asked in storm.asked)

    run(scenario())
