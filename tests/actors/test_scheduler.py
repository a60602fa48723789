"""Single decisions of the scheduler, each case small enough to follow by hand."""

from __future__ import annotations

from typing import Any

import pytest

from actors.messages import GenerateRequest, TokenEvent
from actors.scheduling.scheduler import ScheduledChunk, Scheduler, SchedulerLimits
from model.block_pool import BlockPool
from model.sampling_params import SamplingParams, TokenLogprobs
from tests.actors.scheduler_steps import finish, step

EOS = 2


def make_scheduler(
    num_blocks: int = 64,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 32,
    max_model_len: int = 64,
    block_size: int = 4,
    enable_prefix_caching: bool = False,  # test_prefix_cache.py is about what is shared
) -> Scheduler:
    limits = SchedulerLimits(
        max_num_seqs,
        max_num_batched_tokens,
        max_model_len,
        block_size,
        frozenset({EOS}),
        enable_prefix_caching,
    )
    return Scheduler(limits, BlockPool(num_blocks))


def make_request(
    request_id: str, prompt_len: int, outputs: tuple[int, ...] = (), **params: Any
) -> GenerateRequest:
    params = {"max_tokens": 50, "seed": 0, **params}
    prompt = tuple(range(100, 100 + prompt_len))
    return GenerateRequest(request_id, "ingress", prompt, SamplingParams(**params), outputs)


def rows(chunks: list[ScheduledChunk]) -> list[tuple[str, int, int, bool]]:
    return [(c.sequence.request_id, c.start, c.num_tokens, c.samples) for c in chunks]


def generate(scheduler: Scheduler, tokens: list[int]) -> list[TokenEvent]:
    return [event for token in tokens for event in step(scheduler, token)[1]]


def blocks_held(scheduler: Scheduler) -> int:
    return scheduler.pool.num_blocks - scheduler.pool.num_free


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
