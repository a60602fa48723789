"""Preemption, abort and reset of what a scheduler has begun, and a step that runs twice."""

from __future__ import annotations

import pytest

from actors.messages import TokenEvent
from tests.actors.scheduler_steps import finish, step
from tests.actors.small_scheduler import blocks_held, make_request, make_scheduler, rows


def test_a_decode_without_a_block_preempts_the_youngest() -> None:
    scheduler = make_scheduler(num_blocks=7, max_model_len=28)
    for name, length in [("a", 8), ("b", 4), ("c", 4)]:
        scheduler.add(make_request(name, length))
    for _ in range(5):  # 2 + 1 + 1 blocks for the prompts, one more each for what follows
        assert step(scheduler)[0].preempted == []
    assert blocks_held(scheduler) == 7
    plan, events = step(scheduler, token=8)
    # Row 12 of a needs a block, so does row 8 of b: c's two, and c itself has no row.
    assert rows(plan.decodes) == [("a", 12, 1, True), ("b", 8, 1, True)]
    assert (plan.preempted, plan.prefills) == (["c"], [])
    assert [e.request_id for e in events] == ["a", "b"]
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)
    assert scheduler.num_preemptions_total == 1
    scheduler.abort("a")
    plan, events = step(scheduler, token=9)
    assert rows(plan.prefills) == [("c", 0, 9, True)]
    sequence = plan.prefills[0].sequence
    assert (sequence.output_token_ids, sequence.num_preemptions) == ([7, 7, 7, 7, 7, 9], 1)
    assert events == [TokenEvent("b", (9,)), TokenEvent("c", (9,))]  # no 7 of c goes out again


def test_the_youngest_without_a_block_preempts_itself_and_no_older_one() -> None:
    scheduler = make_scheduler(num_blocks=6, max_model_len=24)
    for name, length in [("a", 8), ("b", 4)]:
        scheduler.add(make_request(name, length))
    for _ in range(5):
        assert step(scheduler)[0].preempted == []
    assert blocks_held(scheduler) == 5
    plan, _ = step(scheduler)
    assert (rows(plan.decodes), plan.preempted) == ([("a", 12, 1, True)], ["b"])
    assert blocks_held(scheduler) == 4


def test_preempted_sequences_come_back_before_newer_ones_in_their_order() -> None:
    scheduler = make_scheduler(num_blocks=6, max_model_len=24, max_num_seqs=3)
    for name, length in [("a", 4), ("b", 4), ("c", 4), ("d", 1)]:
        scheduler.add(make_request(name, length, max_tokens=15))
    finished: list[str] = []
    for _ in range(200):
        if not scheduler.has_work:
            break
        _, events = step(scheduler)
        finished += [e.request_id for e in events if e.finish_reason]
    assert finished == ["a", "b", "c", "d"]
    assert scheduler.num_preemptions_total > 0


def test_abort_of_waiting_and_of_running_is_immediate() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for name in "abc":
        scheduler.add(make_request(name, 5))
    step(scheduler)
    assert scheduler.abort("c") and scheduler.num_waiting == 0
    assert scheduler.abort("a") and scheduler.num_running == 1
    assert blocks_held(scheduler) == 2
    assert not scheduler.abort("a") and not scheduler.abort("nobody")
    scheduler.check_integrity()
    assert [e.request_id for e in step(scheduler)[1]] == ["b"]


def test_abort_in_flight_keeps_the_blocks_until_the_step_is_finished() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    scheduler.add(make_request("a", 3))
    step(scheduler)
    scheduler.add(make_request("b", 30))
    plan = scheduler.schedule()
    assert scheduler.abort("a") and scheduler.abort("b")
    assert not scheduler.abort("a")
    assert blocks_held(scheduler) == 1 + 2 and scheduler.num_running == 2
    scheduler.add(make_request("a", 2))  # the id is free for a new request
    assert finish(scheduler, plan) == []
    assert blocks_held(scheduler) == 0
    plan, events = step(scheduler, token=9)
    assert (rows(plan.prefills), events) == ([("a", 0, 2, True)], [TokenEvent("a", (9,))])


def test_abort_while_a_step_without_it_is_in_flight_is_immediate() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    scheduler.add(make_request("a", 3))
    scheduler.add(make_request("b", 3))
    plan = scheduler.schedule()
    assert scheduler.abort("b") and scheduler.num_waiting == 0
    assert [e.request_id for e in finish(scheduler, plan)] == ["a"]


def test_reset_recomputes_all_in_order_and_forgets_the_step_in_flight() -> None:
    scheduler = make_scheduler()
    for name, length in [("a", 5), ("b", 3)]:
        scheduler.add(make_request(name, length))
    step(scheduler)
    scheduler.add(make_request("c", 2))
    lost = scheduler.schedule()
    scheduler.abort("b")
    scheduler.reset_computed()
    scheduler.check_integrity()
    assert (scheduler.num_running, scheduler.num_waiting, blocks_held(scheduler)) == (0, 2, 0)
    assert scheduler.num_preemptions_total == 0
    with pytest.raises(AssertionError, match="not the step in flight"):
        scheduler.finish_step(lost, [(7, None)] * 3)
    plan, events = step(scheduler)
    assert rows(plan.prefills) == [("a", 0, 6, True), ("c", 0, 2, True)]
    assert [e.request_id for e in events] == ["a", "c"]


def test_a_step_that_runs_twice_is_taken_in_once() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", 3))
    plan = scheduler.schedule()
    with pytest.raises(AssertionError, match="not finished"):
        scheduler.schedule()
    with pytest.raises(AssertionError, match="0 tokens, 1 chunks"):
        scheduler.finish_step(plan, [])
    assert len(finish(scheduler, plan)) == 1  # the refused call changed nothing
    with pytest.raises(AssertionError, match="not the step in flight"):
        scheduler.finish_step(plan, [(7, None)])
