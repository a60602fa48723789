"""What sequences share, each case small enough to follow by hand. Blocks have four tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from actors.messages import GenerateRequest
from actors.scheduling.scheduler import RunningSequence, Scheduler, SchedulerLimits, StepPlan
from model.block_pool import BlockPool
from model.sampling_params import SamplingParams
from tests.actors.scheduler_steps import finish, step

LONG = tuple(range(100, 130))


def make_scheduler(
    num_blocks: int = 64, budget: int = 64, max_model_len: int = 64, caching: bool = True
) -> Scheduler:
    limits = SchedulerLimits(8, budget, max_model_len, 4, frozenset(), caching)
    return Scheduler(limits, BlockPool(num_blocks))


def make_request(
    request_id: str, prompt: Sequence[int], outputs: Sequence[int] = (), max_tokens: int = 50
) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens, seed=0)
    return GenerateRequest(request_id, "ingress", tuple(prompt), params, tuple(outputs))


def rows(plan: StepPlan) -> list[tuple[str, int, int]]:
    return [(c.sequence.request_id, c.start, c.num_tokens) for c in plan.decodes + plan.prefills]


def run_to_end(scheduler: Scheduler, *requests: GenerateRequest) -> list[tuple[str, int, int]]:
    """All rows that it took."""
    for request in requests:
        scheduler.add(request)
    ran: list[tuple[str, int, int]] = []
    while scheduler.has_work:
        ran += rows(step(scheduler)[0])
    return ran


def known(scheduler: Scheduler, prompt: Sequence[int]) -> int:
    """How many blocks of a prompt would be found now."""
    sequence = RunningSequence.of(make_request("?", prompt), 0, frozenset(), 64)
    return len(scheduler.prefixes.find(sequence).block_ids)


def counts(scheduler: Scheduler) -> tuple[int, int]:
    return scheduler.prefixes.num_queried_tokens, scheduler.prefixes.num_hit_tokens


@pytest.mark.parametrize(
    ("num_known", "length", "start"),
    [(30, 30, 28), (30, 29, 28), (30, 28, 24), (9, 30, 8), (8, 30, 8), (7, 30, 4), (3, 30, 0)],
)
def test_a_prompt_starts_behind_the_full_blocks_it_shares(
    num_known: int, length: int, start: int
) -> None:
    scheduler = make_scheduler()
    run_to_end(scheduler, make_request("a", LONG, max_tokens=1))
    prompt = [*LONG[:num_known], *range(200, 230)][:length]
    scheduler.add(make_request("b", prompt, max_tokens=1))
    plan, (event,) = step(scheduler)
    # Even of a prompt that is known to its end, the last token runs: it gives the logits.
    assert rows(plan) == [("b", start, length - start)]
    assert event.num_cached_tokens == start
    assert counts(scheduler) == (30 + length, start)


def test_a_difference_in_an_early_token_shares_nothing() -> None:
    scheduler = make_scheduler()
    run_to_end(scheduler, make_request("a", LONG, max_tokens=1))
    assert run_to_end(scheduler, make_request("b", (1, *LONG[1:]), max_tokens=1)) == [("b", 0, 30)]


def test_the_next_turn_starts_behind_prompt_and_answer() -> None:
    scheduler = make_scheduler()
    run_to_end(scheduler, make_request("a", LONG[:6], max_tokens=7))
    # 13 tokens, of which the last was drawn and never ran: three full blocks.
    turn = [*LONG[:6], *[7] * 7, 50, 51]
    assert run_to_end(scheduler, make_request("b", turn, max_tokens=1)) == [("b", 12, 3)]


def test_what_a_decode_fills_is_found_while_it_goes_on() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", LONG[:6]))
    for _ in range(3):  # rows up to position 7: its second block is full
        step(scheduler)
    scheduler.add(make_request("b", [*LONG[:6], 7, 7, 7]))
    plan, _ = step(scheduler)
    assert rows(plan) == [("a", 8, 1), ("b", 8, 1)]
    a, b = (chunk.sequence.block_ids for chunk in plan.decodes + plan.prefills)
    assert a[:2] == b[:2] and a[2] != b[2]
    assert scheduler.pool.num_free == 64 - 4


def test_blocks_are_found_only_once_their_step_is_over() -> None:
    scheduler = make_scheduler()
    for name in "ab":
        scheduler.add(make_request(name, LONG, max_tokens=2))
    plan = scheduler.schedule()
    assert rows(plan) == [("a", 0, 30), ("b", 0, 30)]
    a, b = (chunk.sequence.block_ids for chunk in plan.prefills)
    assert not set(a) & set(b)
    finish(scheduler, plan)
    scheduler.add(make_request("c", LONG, max_tokens=2))
    plan, _ = step(scheduler)
    # Both computed the same blocks; those of the first are the ones that are known.
    assert plan.prefills[0].sequence.block_ids[:7] == a[:7]
    assert scheduler.pool.num_free == 64 - 8  # a and b have ended


def test_a_prompt_behind_a_long_one_uses_its_chunks_as_they_are_done() -> None:
    scheduler = make_scheduler(budget=14)
    for name in "ab":
        scheduler.add(make_request(name, LONG))
    assert [rows(step(scheduler)[0]) for _ in range(3)] == [
        [("a", 0, 14)],
        [("a", 14, 14)],
        [("a", 28, 2), ("b", 28, 2)],
    ]


def test_a_preempted_sequence_computes_only_what_was_evicted() -> None:
    scheduler = make_scheduler(num_blocks=7, max_model_len=28)
    scheduler.add(make_request("a", LONG[:8]))
    scheduler.add(make_request("b", LONG[10:18]))
    for _ in range(5):
        step(scheduler)
    before = counts(scheduler)
    plan, _ = step(scheduler)  # row 12 of a takes the last free block, b has none for its own
    assert (rows(plan), plan.preempted) == ([("a", 12, 1)], ["b"])
    scheduler.abort("a")
    plan, (event,) = step(scheduler)
    assert rows(plan) == [("b", 12, 1)]  # 13 tokens, three full blocks still there
    assert event.num_cached_tokens == 0  # told once, with its first token
    assert counts(scheduler) == before  # nobody new was admitted


def test_a_resubmission_finds_its_own_tokens() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a#0", LONG[:6], max_tokens=20))
    for _ in range(8):
        step(scheduler)
    scheduler.abort("a#0")
    scheduler.add(make_request("a#1", LONG[:6], outputs=[7] * 8, max_tokens=20))
    plan, (event,) = step(scheduler)
    assert rows(plan) == [("a#1", 12, 2)]
    assert event.num_cached_tokens == 12


def test_an_abort_leaves_what_it_computed() -> None:
    scheduler = make_scheduler(budget=8)
    scheduler.add(make_request("a", LONG))
    plan = scheduler.schedule()
    scheduler.abort("a")
    finish(scheduler, plan)
    assert scheduler.pool.num_free == 64
    scheduler.add(make_request("b", LONG))
    assert rows(scheduler.schedule()) == [("b", 8, 8)]


def test_a_lost_cache_knows_nothing() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", LONG))
    step(scheduler)
    scheduler.reset_computed()
    scheduler.check_integrity()
    assert rows(step(scheduler)[0]) == [("a", 0, 31)]
    run_to_end(scheduler)
    scheduler.reset_computed()
    assert run_to_end(scheduler, make_request("b", LONG, max_tokens=1)) == [("b", 0, 30)]


def test_the_least_recently_used_prefix_makes_room_and_its_tail_before_its_head() -> None:
    scheduler = make_scheduler(num_blocks=16)
    prompts = {name: [ord(name)] * 21 for name in "abcd"}  # 5 full blocks each and a part
    for name in "abc":
        run_to_end(scheduler, make_request(name, prompts[name], max_tokens=1))
    # 15 blocks are kept, 1 is blank. To use a again makes b the oldest: of its five blocks d,
    # which needs three and finds one blank, takes the last two.
    assert run_to_end(scheduler, make_request("a2", prompts["a"], max_tokens=1)) == [("a2", 20, 1)]
    run_to_end(scheduler, make_request("d", prompts["d"][:9], max_tokens=1))
    assert [known(scheduler, prompts[name]) for name in "abcd"] == [5, 3, 5, 2]


@pytest.mark.parametrize(("num_free", "admitted"), [(4, True), (3, False)])
def test_a_block_that_others_hold_costs_no_free_one(num_free: int, admitted: bool) -> None:
    scheduler = make_scheduler(num_blocks=8 + num_free, max_model_len=44)
    scheduler.add(make_request("a", LONG))  # 8 blocks
    step(scheduler)
    # 10 blocks with its answer; 7 are a's. It takes 3, and one is left to spare for a.
    scheduler.add(make_request("b", [*LONG[:28], *range(200, 208)]))
    plan = scheduler.schedule()
    assert rows(plan)[1:] == ([("b", 28, 8)] if admitted else [])


def test_a_prefix_that_nobody_holds_is_taken_from_the_free_blocks() -> None:
    scheduler = make_scheduler(num_blocks=16)
    run_to_end(scheduler, make_request("a", LONG, max_tokens=1))
    scheduler.add(make_request("x", [1] * 31))
    step(scheduler)  # 8 blocks of x; 8 free, of which 7 hold a's prefix
    scheduler.add(make_request("b", LONG))  # 8 blocks and one to spare: one too many
    assert rows(step(scheduler)[0]) == [("x", 31, 1)]
    scheduler.abort("x")
    assert rows(step(scheduler)[0]) == [("b", 28, 2)]


def test_what_the_model_failed_on_is_not_shared() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", LONG))
    step(scheduler)
    scheduler.add(make_request("bad", [*LONG[:8], *[9] * 8]))
    scheduler.add(make_request("worse", [*LONG[:8], *[9] * 8]))
    plan = scheduler.schedule()
    a, bad, worse = (chunk.sequence for chunk in plan.decodes + plan.prefills)
    assert a.block_ids[:2] == bad.block_ids[:2] == worse.block_ids[:2]
    # The two blocks of a stay as they are: it reads them. Those of the others are cleared.
    assert sorted(scheduler.fail([bad, worse])) == sorted(bad.block_ids[2:] + worse.block_ids[2:])
    events = finish(scheduler, plan)
    assert [event.request_id for event in events] == ["a"]
    assert (scheduler.num_running, scheduler.pool.num_free) == (1, 64 - 8)
    scheduler.add(make_request("b", [*LONG[:8], *[9] * 8]))
    plan, _ = step(scheduler)
    assert rows(plan) == [("a", 31, 1), ("b", 0, 16)]


def test_what_a_failing_step_filled_is_not_found() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", LONG))
    plan = scheduler.schedule()
    blocks = plan.prefills[0].sequence.block_ids
    assert scheduler.fail([plan.prefills[0].sequence]) == blocks
    assert finish(scheduler, plan) == []
    assert known(scheduler, LONG) == 0


def test_a_block_that_only_failing_sequences_hold_is_cleared() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", LONG))
    step(scheduler)
    scheduler.add(make_request("b", LONG))
    plan = scheduler.schedule()
    a, b = (chunk.sequence for chunk in plan.decodes + plan.prefills)
    scheduler.abort("a")  # in flight: it still has its blocks when the step fails
    assert sorted(scheduler.fail([a, b])) == sorted({*a.block_ids, *b.block_ids})
    assert finish(scheduler, plan) == []
    assert (scheduler.num_running, scheduler.pool.num_free) == (0, 64)
    assert run_to_end(scheduler, make_request("c", LONG, max_tokens=1)) == [("c", 0, 30)]


def test_switched_off_nothing_is_shared_or_counted() -> None:
    scheduler = make_scheduler(caching=False)
    for name in "ab":
        ran = run_to_end(scheduler, make_request(name, LONG, max_tokens=9))
        assert ran[0] == (name, 0, 30)
    assert counts(scheduler) == (0, 0)
    scheduler.add(make_request("c", LONG))
    assert step(scheduler)[1][0].num_cached_tokens == 0
