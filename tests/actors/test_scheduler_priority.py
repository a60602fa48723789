"""Whose turn it is: by priority, then by arrival; cases small enough to follow by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.messages import GenerateRequest
from actors.scheduling.scheduler import ScheduledChunk, Scheduler, SchedulerLimits
from model.block_pool import BlockPool
from model.sampling_params import SamplingParams
from tests.actors.scheduler_steps import step


def make_scheduler(
    num_blocks: int = 64,
    seqs: int = 8,
    budget: int = 32,
    max_model_len: int = 64,
    caching: bool = False,
) -> Scheduler:
    limits = SchedulerLimits(seqs, budget, max_model_len, 4, (), caching)
    return Scheduler(limits, BlockPool(num_blocks))


def make_request(
    request_id: str,
    prompt_len: int,
    priority: int = 0,
    arrival_s: float = 0.0,
    outputs: int = 0,
    max_tokens: int = 50,
) -> GenerateRequest:
    return GenerateRequest(
        request_id,
        "ingress",
        tuple(range(prompt_len)),
        SamplingParams(max_tokens=max_tokens, seed=0),
        (7,) * outputs,
        arrival_s,
        priority,
    )


def rows(chunks: list[ScheduledChunk]) -> list[tuple[str, int]]:
    return [(c.sequence.request_id, c.num_tokens) for c in chunks]


def admitted(scheduler: Scheduler) -> list[str]:
    """Who comes in, in order, until nobody waits."""
    order: list[str] = []
    while scheduler.num_waiting:
        plan, _ = step(scheduler)
        order += [name for name, _ in rows(plan.prefills) if name not in order]
    return order


def test_the_lower_number_comes_first_and_equals_by_arrival() -> None:
    scheduler = make_scheduler(seqs=1)
    for name, priority, arrival_s in [
        ("late", 0, 5.0),
        ("background", 9, 0.0),
        ("tie1", 0, 3.0),
        ("tie2", 0, 3.0),
        ("urgent", -4, 8.0),
        ("early", 0, 1.0),
    ]:
        scheduler.add(make_request(name, 3, priority, arrival_s, max_tokens=2))
    assert admitted(scheduler) == ["urgent", "early", "tie1", "tie2", "late", "background"]


def test_a_request_that_lost_its_actor_keeps_its_place() -> None:
    scheduler = make_scheduler(seqs=1)
    scheduler.add(make_request("a", 3, arrival_s=10.0, max_tokens=2))
    step(scheduler)
    for name, arrival_s, outputs in [("new", 12.0, 0), ("waited", 11.0, 0), ("stream", 3.0, 5)]:
        scheduler.add(make_request(name, 3, 0, arrival_s, outputs, max_tokens=20))
    assert admitted(scheduler) == ["stream", "waited", "new"]


def test_a_long_prompt_of_lower_priority_lets_others_pass_at_once() -> None:
    scheduler = make_scheduler(budget=8)
    scheduler.add(make_request("background", 40, priority=5))
    plan, _ = step(scheduler)
    assert rows(plan.prefills) == [("background", 8)]
    scheduler.add(make_request("urgent", 13))
    assert rows(step(scheduler)[0].prefills) == [("urgent", 8)]
    assert rows(step(scheduler)[0].prefills) == [("urgent", 5), ("background", 3)]
    plan, _ = step(scheduler)
    assert (rows(plan.decodes), rows(plan.prefills)) == ([("urgent", 1)], [("background", 7)])


def test_a_later_arrival_of_the_same_priority_does_not_pass() -> None:
    scheduler = make_scheduler(budget=8)
    scheduler.add(make_request("long", 40, arrival_s=1.0))
    step(scheduler)
    scheduler.add(make_request("short", 3, arrival_s=2.0))
    assert rows(step(scheduler)[0].prefills) == [("long", 8)]
    # One that is known to have arrived before does.
    scheduler.add(make_request("resubmitted", 3, arrival_s=0.5))
    assert rows(step(scheduler)[0].prefills) == [("resubmitted", 3), ("long", 5)]


@pytest.mark.parametrize(
    ("priorities", "victim"),
    [((0, 0, 0), "c"), ((2, 0, 0), "a"), ((0, 1, 0), "b"), ((1, 1, 0), "b"), ((3, 1, 2), "a")],
)
def test_the_least_important_gives_way_and_of_equals_the_youngest(
    priorities: tuple[int, int, int], victim: str
) -> None:
    scheduler = make_scheduler(num_blocks=8, max_model_len=32)
    for name, priority in zip("abc", priorities, strict=True):
        scheduler.add(make_request(name, 4, priority))
    preempted: list[str] = []
    while not preempted:
        plan, events = step(scheduler)
        preempted = plan.preempted
        assert len(events) == 3 - len(preempted)
    assert preempted == [victim]
    # It comes back when there is room, before one that arrives now.
    scheduler.add(make_request("new", 4, dict(zip("abc", priorities, strict=True))[victim], 9.0))
    for name in {*"abc"} - {victim}:
        scheduler.abort(name)
    plan, _ = step(scheduler)
    assert rows(plan.prefills)[0][0] == victim


def running_and(scheduler: Scheduler, *shapes: tuple[str, int, int]) -> Scheduler:
    """With sequences of these names, prompt lengths and priorities that decode."""
    for name, prompt_len, priority in shapes:
        scheduler.add(make_request(name, prompt_len, priority))
    plan, _ = step(scheduler)
    assert len(plan.prefills) == len(shapes)
    return scheduler


def test_lower_priority_makes_way_for_a_place() -> None:
    scheduler = running_and(make_scheduler(seqs=3), ("a", 4, 0), ("b", 4, 2), ("c", 4, 1))
    scheduler.add(make_request("urgent", 4))
    plan, _ = step(scheduler)
    assert plan.preempted == ["b"]
    assert (rows(plan.decodes), rows(plan.prefills)) == ([("a", 1), ("c", 1)], [("urgent", 4)])
    scheduler.add(make_request("equal", 4, priority=1))
    plan, _ = step(scheduler)
    assert (plan.preempted, plan.prefills) == ([], [])
    scheduler.abort("a")
    assert rows(step(scheduler)[0].prefills) == [("equal", 4)]


@pytest.mark.parametrize(
    ("prompt_len", "preempted"), [(15, []), (16, ["d"]), (23, ["d"]), (24, ["d", "c"])]
)
def test_lower_priority_makes_way_for_blocks_and_no_more_than_it_takes(
    prompt_len: int, preempted: list[str]
) -> None:
    # 10 of 14 blocks are held: four by a, two by each of the others.
    scheduler = make_scheduler(num_blocks=14, max_model_len=40)
    running_and(scheduler, ("a", 13, 1), ("b", 5, 1), ("c", 5, 1), ("d", 5, 1))
    scheduler.add(make_request("urgent", prompt_len))
    plan, _ = step(scheduler)
    assert plan.preempted == preempted
    assert rows(plan.prefills) == [("urgent", prompt_len)]


def test_nobody_makes_way_in_vain() -> None:
    scheduler = make_scheduler(num_blocks=16, max_model_len=64, budget=64)
    running_and(scheduler, ("same", 36, 0), ("less", 4, 1))  # ten blocks and two
    scheduler.add(make_request("urgent", 30))  # eight, and one to spare for the first
    plan, _ = step(scheduler)
    assert (plan.preempted, rows(plan.decodes)) == ([], [("same", 1), ("less", 1)])


def test_blocks_that_others_share_are_not_freed() -> None:
    scheduler = make_scheduler(16, budget=64, caching=True)
    running_and(scheduler, ("same", 25, 0))  # seven blocks
    running_and(scheduler, ("less", 29, 1))  # six of those and two
    scheduler.add(unlike("urgent", 34))  # nine and one to spare, of nine that could be free
    plan, _ = step(scheduler)
    assert (plan.preempted, len(plan.decodes)) == ([], 2)


@pytest.mark.parametrize(("num_blocks", "preempted"), [(21, []), (22, ["less"])])
def test_a_prefix_that_only_the_preempted_hold_is_counted_once(
    num_blocks: int, preempted: list[str]
) -> None:
    scheduler = make_scheduler(num_blocks, budget=64, caching=True)
    scheduler.add(unlike("same", 25))  # seven blocks
    step(scheduler)
    running_and(scheduler, ("less", 29, 1))  # eight
    # Fourteen, six of them those of the other, and one to spare: all that the first leaves free.
    scheduler.add(make_request("urgent", 55))
    plan, _ = step(scheduler)
    assert plan.preempted == preempted


def unlike(request_id: str, prompt_len: int) -> GenerateRequest:
    """A request that shares no prefix with others."""
    request = make_request(request_id, prompt_len)
    return replace(request, prompt_token_ids=tuple(range(500, 500 + prompt_len)))


def test_who_made_way_for_nothing_but_its_priority_goes_on_from_what_it_had() -> None:
    scheduler = running_and(make_scheduler(seqs=1), ("a", 6, 1))
    for _ in range(5):
        step(scheduler)
    scheduler.add(make_request("urgent", 4, max_tokens=3))
    events = [event for _ in range(8) for event in step(scheduler)[1]]
    names = [event.request_id for event in events]
    assert names == ["urgent"] * 3 + ["a"] * 5
    assert all(event.token_ids == (7,) for event in events)


def test_prompts_part_way_do_not_lock_each_other_out() -> None:
    # The older one is let in while the younger still has most of its blocks to take.
    scheduler = make_scheduler(num_blocks=17, budget=4)
    scheduler.add(make_request("young", 40, arrival_s=9.0, max_tokens=20))
    for _ in range(5):
        step(scheduler)
    scheduler.add(make_request("old", 40, arrival_s=5.0, max_tokens=20))
    finished: list[str] = []
    for _ in range(200):
        plan, events = step(scheduler)
        finished += [event.request_id for event in events if event.finish_reason]
        if not scheduler.has_work:
            break
        assert plan
    assert finished == ["old", "young"]
    assert scheduler.num_preemptions_total == 1


def test_a_step_left_to_decodes_that_give_way_is_not_empty() -> None:
    """An empty plan would let the loop rest while there is work."""
    scheduler = make_scheduler(num_blocks=8, budget=4, max_model_len=32)
    scheduler.add(make_request("young", 1, arrival_s=9.0))
    step(scheduler)
    scheduler.add(make_request("old", 27, arrival_s=5.0))
    while scheduler.pool.num_free:
        assert [name for name, _ in rows(step(scheduler)[0].prefills)] == ["old"]
    scheduler.pace.max_prefill_rows = lambda decodes, prompts: 0 if decodes else 4  # type: ignore
    plan, _ = step(scheduler)
    while not plan.preempted:
        assert (rows(plan.decodes), rows(plan.prefills)) == ([("young", 1)], [])
        plan, _ = step(scheduler)
    assert plan.preempted == ["young"]
    assert (rows(plan.decodes), [name for name, _ in rows(plan.prefills)]) == ([], ["old"])
