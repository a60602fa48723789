"""More work than fits: who waits how long, in steps and in virtual time."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from actors.messages import GenerateRequest
from actors.scheduling.scheduler import Scheduler, SchedulerLimits, StepPlan
from model.block_pool import BlockPool
from model.sampling_params import SamplingParams
from tests.actors.timed_scheduler import Stream, play, straight


def make_scheduler(seqs: int, budget: int, max_model_len: int, num_blocks: int) -> Scheduler:
    limits = SchedulerLimits(seqs, budget, max_model_len, 4, (), False)
    return Scheduler(limits, BlockPool(num_blocks))


def make_request(
    number: int, prompt_len: int, max_tokens: int, priority: int = 0
) -> GenerateRequest:
    return GenerateRequest(
        str(number),
        "ingress",
        tuple(range(prompt_len)),
        SamplingParams(max_tokens=max_tokens, seed=0),
        arrival_s=float(number),
        priority=priority,
    )


def step(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.schedule()
    scheduler.check_integrity()
    scheduler.finish_step(plan, [(7, None)] * len(plan.sampling_chunks()))
    return plan


@settings(deadline=None, max_examples=50)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=5, max_size=20),
    seqs=st.integers(1, 4),
    budget=st.integers(2, 12),
    spare_blocks=st.integers(0, 10),
)
def test_everybody_comes_in_within_what_those_before_need(
    shapes: list[tuple[int, int]], seqs: int, budget: int, spare_blocks: int
) -> None:
    """However many come behind: no later arrival makes a request wait a step longer."""

    def admissions(crowd: int) -> list[int]:
        """The step in which each was admitted, with so many newcomers each step."""
        scheduler = make_scheduler(seqs, budget, 50, 13 + spare_blocks)
        for number, (prompt_len, max_tokens) in enumerate(shapes):
            scheduler.add(make_request(number, prompt_len, max_tokens))
        at: dict[str, int] = {}
        steps, newcomers = 0, 1000
        while len(at) < len(shapes):
            for chunk in step(scheduler).prefills:
                if int(chunk.sequence.request_id) < len(shapes):
                    at.setdefault(chunk.sequence.request_id, steps)
            for _ in range(crowd):
                scheduler.add(make_request(newcomers, 1 + newcomers % 7, 3))
                newcomers += 1
            steps += 1
            # Alone each takes a step a row at most; preemption repeats what the pool is short of.
            assert steps < 4 * sum(a + b for a, b in shapes) + 10
        return [at[str(number)] for number in range(len(shapes))]

    calm = admissions(0)
    assert calm == sorted(calm)
    assert admissions(3) == calm


def test_short_prompts_do_not_starve_a_long_one() -> None:
    streams = [Stream(index * 0.05, 64, 32) for index in range(400)]
    long = Stream(2.0, 4096, 8)
    play([*streams, long])
    served_before = [one for one in streams if one.token_times_s[0] < long.token_times_s[0]]
    # In turn: all that came before it and none that came after.
    assert all(one.arrival_s <= long.arrival_s for one in served_before)
    assert len(served_before) == sum(one.arrival_s <= long.arrival_s for one in streams)


def test_a_long_prompt_does_not_starve_decodes() -> None:
    streams = [Stream(0.0, 64, 200) for _ in range(8)]
    prompts = [Stream(1.0, 8192, 4) for _ in range(4)]
    run = play([*streams, *prompts])
    during = [(end_s, decodes) for end_s, decodes, prefills in run.rows if prefills and decodes]
    assert len(during) > 40
    for one in streams:
        # A token in every step, however long the queue of prompts.
        assert len(one.token_times_s) == 200
        assert all(gap <= straight(8, 512) + 1e-9 for gap in one.gaps_s)
    ends = {end_s for end_s, decodes, _ in run.rows if decodes}
    last_s = min(one.token_times_s[-1] for one in streams)
    assert all(ends >= set(one.token_times_s[1:]) for one in streams)
    assert {e for e in ends if 1.0 < e < last_s} <= set(streams[0].token_times_s)


def test_a_crowd_does_not_keep_one_that_is_more_important_waiting() -> None:
    crowd = [Stream(0.0, 128, 64, priority=1) for _ in range(1000)]
    urgent = [Stream(2.0 + index, 128, 16) for index in range(5)]
    play([*crowd, *urgent])
    # It waits for a place of the 64 and for its prompt, not for a thousand others.
    assert max(one.ttft_s for one in urgent) < 6.0
    assert max(one.ttft_s for one in crowd) > 60.0


def test_who_was_preempted_goes_on_before_anybody_new() -> None:
    scheduler = make_scheduler(8, 64, 64, 16)
    for number in range(4):
        scheduler.add(make_request(number, 12, 40))
    waiting: list[int] = []  # preempted, not back yet
    num_preempted = 0
    for number in range(4, 200):
        scheduler.add(make_request(number, 2, 30))
        plan = step(scheduler)
        back = [int(chunk.sequence.request_id) for chunk in plan.prefills]
        waiting += [int(name) for name in plan.preempted]
        num_preempted += len(plan.preempted)
        waiting = [one for one in waiting if one not in back]
        new = [one for one in back if not scheduler_knew(plan, one)]
        assert not waiting or all(one < min(waiting) for one in new)
    assert num_preempted > 5


def scheduler_knew(plan: StepPlan, number: int) -> bool:
    """Whether it had run before."""
    (chunk,) = [c for c in plan.prefills if c.sequence.request_id == str(number)]
    return chunk.sequence.num_preemptions > 0 or chunk.start > 0
