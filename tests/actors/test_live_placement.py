"""Changes of the placement while ranks serve: what happens in which order, and what undoes it.

Two attention ranks (0, 1) and two expert ranks (2, 3) with two experts of each layer each.
"""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import RayActorError

from actors.placement.placement_messages import (
    ChangeReport,
    Drop,
    Move,
    PlacementChange,
    Rebalance,
    Replicate,
    Scale,
)
from model.placement import ExpertPlacement
from model.shards import CheckpointError
from tests.actors.fake_calls import HELD, task_error
from tests.actors.fake_live import applied, refused, serving
from tests.actors.fake_pipeline import EXPERTS, LAYERS
from tests.actors.virtual_time import run, turns

HOT = [[90.0, 2.0, 4.0, 4.0]] * LAYERS  # both ranks hold expert 0 where there is room for it


@pytest.mark.parametrize(
    ("change", "want", "loads", "added", "dropped"),
    [
        (Replicate(0, 1, 3), ((2,), (2,), (3,), (3,)), [3], ((1, 0, 3),), ()),
        (Move(1, 1, 2, 3), ((2,), (2,), (3,), (3,)), [3], ((1, 1, 3),), ((1, 1, 2),)),
    ],
)
def test_weights_come_first_then_the_table_then_what_is_dropped_goes(
    change: PlacementChange,
    want: tuple[tuple[int, ...], ...],
    loads: list[int],
    added: tuple[tuple[int, int, int], ...],
    dropped: tuple[tuple[int, int, int], ...],
) -> None:
    async def scenario() -> None:
        async with serving() as live:
            before = live.live.version
            report = applied(await live.granted(change))
            await turns()
            order = live.world.called("hold", "adopt", "keep")
            assert order == [
                *(("hold", rank) for rank in loads),
                *(("adopt", rank) for rank in (0, 1)),
                *(("keep", rank) for rank in (2, 3)),
            ]
            assert (report.added, report.dropped) == (added, dropped)
            assert report.placement_version == live.live.version > before
            assert live.target.ranks[0] == want  # the other layer is untouched
            assert live.live.outcomes == {"applied": 1, "unchanged": 0, "refused": 0, "failed": 0}
            live.check()

    run(scenario())


def test_a_dropped_copy_goes_only_when_no_attention_rank_asks_for_it() -> None:
    async def scenario() -> None:
        async with serving() as live:
            applied(await live.granted(Replicate(0)))
            live.world.calls.clear()
            live.at(1).busy = True
            change = asyncio.ensure_future(live.granted(Drop(0, rank=2)))
            await asyncio.sleep(5)
            assert live.world.called("hold", "keep") == []
            assert live.at(0).versions != live.at(1).versions
            live.at(1).rest()
            applied(await change)
            await turns()
            assert live.world.called("keep") == [("keep", 2), ("keep", 3)]
            live.check()

    run(scenario())


@pytest.mark.parametrize("error", [task_error(CheckpointError("w1 is short")), RayActorError()])
def test_a_load_that_fails_leaves_the_old_placement_and_the_next_change_works(
    error: Exception,
) -> None:
    async def scenario() -> None:
        async with serving() as live:
            before = live.target
            live.at(3).modes["hold"] = error
            refusal = refused(await live.granted(Move(0, to=3)))
            assert "the placement is as it was" in str(refusal)
            assert live.target is before and live.live.outcomes["failed"] == 1
            await turns()
            kept = [call for call in live.world.calls if call.method == "keep"]
            assert [set(call.args[0]) for call in kept] == [
                set(before.held_by(rank)) for rank in (2, 3)
            ]
            assert live.world.called("adopt") == []
            live.at(3).modes.clear()
            applied(await live.granted(Move(0, to=3)))
            await turns()
            live.check()

    run(scenario())


def test_what_is_still_read_for_a_change_that_failed_elsewhere_is_given_up() -> None:
    """One rank cannot load its part; another is still loading its own, which nobody stops."""

    async def scenario() -> None:
        async with serving() as live:
            live.at(2).modes["hold"] = HELD
            live.at(3).modes["hold"] = task_error(CheckpointError("w1 is short"))
            swap = ExpertPlacement(2, ((((3,), (3,), (2,), (2,))),) * LAYERS)
            with pytest.raises(CheckpointError):
                await live.live._rearrange(swap)
            await turns()
            live.at(2).release("hold")
            await asyncio.sleep(60)
            live.check()

    run(scenario())


def test_an_attention_rank_in_a_long_step_adopts_after_it() -> None:
    async def scenario() -> None:
        async with serving() as live:
            live.at(1).busy = True
            change = asyncio.ensure_future(live.granted(Move(0, to=3)))
            await asyncio.sleep(100)
            assert not change.done() and live.at(2).held == {(0, 0), (0, 1), (1, 0), (1, 1)}
            live.at(1).rest()
            applied(await change)
            await turns()
            live.check()

    run(scenario())


def test_a_death_while_only_some_have_adopted_takes_no_weights_from_under_them() -> None:
    async def scenario() -> None:
        async with serving() as live:
            before = live.target
            live.at(1).busy = True
            change = asyncio.ensure_future(live.granted(Move(0, to=3)))
            await asyncio.sleep(1)
            live.at(1).die()
            assert "the placement is as it was" in str(refused(await change))
            await turns()
            # Rank 0 uses the new table: only a new meeting makes the old one hold for all.
            assert live.live.torn and live.target is before
            assert live.world.called("keep") == []

    run(scenario())


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (Scale(0), "expert_actors"),
        (Scale(EXPERTS + 1), "expert_actors"),
        (Replicate(EXPERTS), "expert"),
        (Replicate(0, LAYERS), "layer"),
        (Replicate(0, 0, 1), "to"),
        (Move(0, source=3, to=2), "from"),
        (Drop(0, rank=2), "rank"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_nothing_is_called(
    change: PlacementChange, param: str
) -> None:
    async def scenario() -> None:
        async with serving() as live:
            refusal = refused(await live.granted(change))
            assert (refusal.param, live.world.calls) == (param, [])
            assert "\n" not in str(refusal)
            assert live.live.outcomes == {"applied": 0, "unchanged": 0, "refused": 1, "failed": 0}
            live.check()

    run(scenario())


def test_nothing_is_changed_while_a_rank_is_being_replaced() -> None:
    async def scenario() -> None:
        async with serving() as live:
            live.world.modes["load"] = HELD
            live.crew.retire(3)
            live.crew.fill(3)
            refusal = refused(await live.granted(Replicate(0)))
            assert refusal.param is None and "rank 3 is being replaced" in str(refusal)

    run(scenario())


def test_a_dry_run_says_what_and_does_nothing() -> None:
    async def scenario() -> None:
        async with serving(redundant_experts=2) as live:
            live.load, before = HOT, live.target
            outcome = await live.granted(Rebalance(dry_run=True))
            assert isinstance(outcome, ChangeReport) and not outcome.applied and outcome.added
            assert (live.target, live.world.calls) == (before, [])
            live.check()
            done = applied(await live.granted(Rebalance()))
            assert (done.added, done.dropped) == (outcome.added, outcome.dropped)
            await turns()
            live.check()

    run(scenario())


def test_without_load_there_is_nothing_to_rebalance() -> None:
    async def scenario() -> None:
        async with serving() as live:
            outcome = await live.granted(Rebalance())
            assert isinstance(outcome, ChangeReport) and not outcome.applied
            assert (outcome.added, live.world.calls) == ((), [])
            same = await live.granted(Scale(2))
            assert isinstance(same, ChangeReport) and not same.applied

    run(scenario())


def test_changes_are_made_one_after_another_under_growing_versions() -> None:
    async def scenario() -> None:
        async with serving() as live:
            changes: list[PlacementChange] = [
                Replicate(0, to=3),
                Scale(3),
                Drop(0),
                Scale(2),
                Move(1, layer=1),
            ]
            wishes = [asyncio.ensure_future(live.live.change(change)) for change in changes]
            await turns()
            versions = [live.live.version]
            while live.live.has_wishes:
                await live.live.grant_next([])
                versions.append(live.live.version)
            await turns()
            made = [applied(wish.result()).placement_version for wish in wishes]
            assert versions[1:] == made and versions == sorted(set(versions))
            live.check()

    run(scenario())
