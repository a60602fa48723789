"""Single decisions of the scheduler, each case small enough to follow by hand."""

from __future__ import annotations

from typing import Any

import pytest

from actors.messages import TokenEvent
from model.sampling_params import TokenLogprobs
from tests.actors.scheduler_steps import step
from tests.actors.small_scheduler import (
    EOS,
    blocks_held,
    generate,
    make_request,
    make_scheduler,
    rows,
)


def test_a_long_prompt_is_cut_and_mixes_with_decodes() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    scheduler.add(make_request("a", 3))
    plan, _ = step(scheduler)
    assert (rows(plan.decodes), rows(plan.prefills)) == ([], [("a", 0, 3, True)])
    scheduler.add(make_request("b", 16))
    scheduler.add(make_request("c", 5))
    for want_decodes, want_prefills in [
        ([("a", 3, 1, True)], [("b", 0, 7, False)]),
        ([("a", 4, 1, True)], [("b", 7, 7, False)]),
        ([("a", 5, 1, True)], [("b", 14, 2, True), ("c", 0, 5, True)]),
        ([("a", 6, 1, True), ("b", 16, 1, True), ("c", 5, 1, True)], []),
    ]:
        plan, _ = step(scheduler)
        assert (rows(plan.decodes), rows(plan.prefills)) == (want_decodes, want_prefills)
        assert plan.num_rows == sum(n for _, _, n, _ in want_decodes + want_prefills)


def test_a_last_prefill_row_alone_is_no_decode() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=4)
    scheduler.add(make_request("a", 5))
    assert step(scheduler)[1] == []
    plan, events = step(scheduler)
    assert (rows(plan.decodes), rows(plan.prefills)) == ([], [("a", 4, 1, True)])
    assert [e.token_ids for e in events] == [(7,)]


def test_chunks_of_one_row_still_finish_everything_in_order() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=1)
    for name in "ab":
        scheduler.add(make_request(name, 3, max_tokens=2))
    plans = [step(scheduler)[0] for _ in range(8)]
    assert [rows(p.decodes + p.prefills)[0][:2] for p in plans] == [
        (name, start) for name in "ab" for start in range(4)
    ]
    assert not scheduler.has_work and blocks_held(scheduler) == 0


@pytest.mark.parametrize(
    ("prompt_len", "after_prefill", "after_decode"), [(7, 2, 2), (8, 2, 3), (9, 3, 3), (1, 1, 1)]
)
def test_blocks_are_taken_when_rows_need_them(
    prompt_len: int, after_prefill: int, after_decode: int
) -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", prompt_len))
    assert blocks_held(scheduler) == 0
    step(scheduler)
    assert blocks_held(scheduler) == after_prefill
    step(scheduler)
    assert blocks_held(scheduler) == after_decode


def test_only_max_num_seqs_run_and_the_next_one_follows() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    for name in "abc":
        scheduler.add(make_request(name, 2, max_tokens=2))
    order = []
    while scheduler.has_work:
        assert scheduler.num_running <= 1
        plan, _ = step(scheduler)
        order += [name for name, *_ in rows(plan.decodes + plan.prefills)]
    assert order == ["a", "a", "b", "b", "c", "c"]


def test_a_short_prompt_does_not_overtake_one_that_has_to_wait_for_blocks() -> None:
    scheduler = make_scheduler(num_blocks=16)
    scheduler.add(make_request("a", 30))
    step(scheduler)  # holds 8 of 16 blocks
    scheduler.add(make_request("b", 28))  # 8 blocks with its first answer token, 1 to spare for a
    scheduler.add(make_request("c", 1))
    plan, _ = step(scheduler)
    assert (rows(plan.prefills), scheduler.num_waiting) == ([], 2)
    scheduler.abort("a")
    plan, _ = step(scheduler)
    assert [name for name, *_ in rows(plan.prefills)] == ["b", "c"]


def test_admission_leaves_a_block_to_each_running_sequence() -> None:
    scheduler = make_scheduler(num_blocks=16)
    scheduler.add(make_request("a", 30))
    step(scheduler)
    scheduler.add(make_request("b", 27))  # 7 blocks, and 1 for a: just what is free
    plan, _ = step(scheduler)
    assert rows(plan.prefills) == [("b", 0, 27, True)]


@pytest.mark.parametrize(
    ("num_blocks", "prompt_len", "last"), [(13, 7, []), (14, 8, [("b", 6, 1, False)])]
)
def test_a_prefill_makes_do_with_the_blocks_that_decodes_leave(
    num_blocks: int, prompt_len: int, last: list[tuple[str, int, int, bool]]
) -> None:
    scheduler = make_scheduler(num_blocks, 8, 3, max_model_len=13, block_size=1)
    scheduler.add(make_request("a", 3))
    step(scheduler)
    scheduler.add(make_request("b", prompt_len))
    for start in (0, 2, 4):  # a decode and two rows of b each: three blocks a step
        assert rows(step(scheduler)[0].prefills) == [("b", start, 2, False)]
    plan, _ = step(scheduler)
    assert (rows(plan.decodes), rows(plan.prefills)) == ([("a", 6, 1, True)], last)
    assert (plan.preempted, scheduler.pool.num_free) == ([], 0)
    plan, _ = step(scheduler)
    assert (rows(plan.decodes), plan.preempted) == ([("a", 7, 1, True)], ["b"])


@pytest.mark.parametrize(
    ("params", "tokens", "reason", "stop_token_id"),
    [
        ({}, [5, EOS], "stop", None),
        ({"ignore_eos": True, "max_tokens": 3}, [5, EOS, 6], "length", None),
        ({"stop_token_ids": (9,)}, [5, 9], "stop", 9),
        ({"stop_token_ids": (9,), "ignore_eos": True}, [EOS, 9], "stop", 9),
        ({"stop_token_ids": (EOS,)}, [5, EOS], "stop", None),
        ({"stop_token_ids": (EOS,), "ignore_eos": True}, [5, EOS], "stop", EOS),
        ({"max_tokens": 1}, [5], "length", None),
        ({"max_tokens": 2}, [5, EOS], "stop", None),
        ({"max_tokens": 2, "stop_token_ids": (9,)}, [5, 9], "stop", 9),
        ({"max_tokens": 100}, [5] * 14, "length", None),
    ],
)
def test_how_a_sequence_ends(
    params: dict[str, Any], tokens: list[int], reason: str, stop_token_id: int | None
) -> None:
    scheduler = make_scheduler(max_model_len=17)
    scheduler.add(make_request("a", 3, **params))
    *before, last = generate(scheduler, tokens)
    assert [e.token_ids for e in [*before, last]] == [(token,) for token in tokens]
    assert {(e.finish_reason, e.stop_token_id) for e in before} <= {(None, None)}
    assert (last.finish_reason, last.stop_token_id) == (reason, stop_token_id)
    assert not scheduler.has_work and blocks_held(scheduler) == 0
    assert not scheduler.abort("a")


def test_events_carry_logprobs_in_the_order_of_the_chunks() -> None:
    scheduler = make_scheduler()
    for name in "ab":
        scheduler.add(make_request(name, 2))
    logprobs = TokenLogprobs(-0.5, ((4, -0.5),))
    events = scheduler.finish_step(scheduler.schedule(), [(3, None), (4, logprobs)])
    assert events == [TokenEvent("a", (3,), None), TokenEvent("b", (4,), (logprobs,))]


def test_a_resubmission_goes_on_behind_its_outputs() -> None:
    scheduler = make_scheduler()
    assert scheduler.add(make_request("a", 3, outputs=(5, 6), max_tokens=4)) == []
    plan, events = step(scheduler, token=8)
    assert rows(plan.prefills) == [("a", 0, 5, True)]
    assert events == [TokenEvent("a", (8,))]
    sequence = plan.prefills[0].sequence
    assert (sequence.num_prompt_tokens, sequence.output_token_ids) == (3, [5, 6, 8])
    assert sequence.token_ids == [100, 101, 102, 5, 6, 8]
    assert step(scheduler, token=9)[1] == [TokenEvent("a", (9,), None, "length")]


@pytest.mark.parametrize(
    ("outputs", "params", "reason", "stop_token_id"),
    [
        ((5, 6), {"max_tokens": 2}, "length", None),
        ((5, EOS), {}, "stop", None),
        ((5, 9), {"stop_token_ids": (9,)}, "stop", 9),
        ((5,) * 14, {}, "length", None),
    ],
)
def test_a_complete_resubmission_ends_without_a_step(
    outputs: tuple[int, ...], params: dict[str, Any], reason: Any, stop_token_id: int | None
) -> None:
    scheduler = make_scheduler(max_model_len=17)
    events = scheduler.add(make_request("a", 3, outputs=outputs, **params))
    assert events == [TokenEvent("a", (), None, reason, stop_token_id)]
    assert not scheduler.has_work
    assert scheduler.add(make_request("a", 3)) == []  # the id is free again


def test_nothing_to_do_is_an_empty_plan() -> None:
    scheduler = make_scheduler()
    plan = scheduler.schedule()
    assert not plan and not scheduler.has_work
    assert scheduler.finish_step(plan, []) == []
    scheduler.schedule()  # an empty plan is not in flight
    scheduler.schedule()


def test_limits_and_pool_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"holds 60 tokens \(15 blocks of 4\).*max_model_len 64"):
        make_scheduler(num_blocks=15)
    make_scheduler(num_blocks=16)
    for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size"):
        sizes: dict[str, Any] = {name: 0}
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            make_scheduler(**sizes)


def test_requests_that_cannot_be_served_are_refused() -> None:
    scheduler = make_scheduler(max_model_len=16)
    scheduler.add(make_request("a", 15))
    with pytest.raises(ValueError, match="a is already being served"):
        scheduler.add(make_request("a", 3))
    for length in (0, 16, 17):
        with pytest.raises(ValueError, match=f"prompt of {length} tokens; from 1 to 15"):
            scheduler.add(make_request("b", length))
    assert scheduler.num_waiting == 1
    assert [e.finish_reason for e in generate(scheduler, [5])] == ["length"]
