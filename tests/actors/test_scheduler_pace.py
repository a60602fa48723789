"""Streams and prompts in virtual time: what a long prompt, a burst or a crowd does to streams."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from actors.messages import GenerateRequest
from actors.scheduling.scheduler import Scheduler, SchedulerLimits
from model.block_pool import BlockPool
from model.sampling_params import SamplingParams
from tests.actors.timed_scheduler import Run, Stream, play, quantile, steady, straight

STREAMS = 8
LONG = 4096
LONG_S = 4.0  # when the long prompt comes


def streaming(count: int = STREAMS, num_ranks: int = 1, tokens: int = 700) -> list[Stream]:
    """Streams that have long begun when the long prompt comes, and go on behind it."""
    return [Stream(0.0, 64, tokens, rank=index % num_ranks) for index in range(count)]


def gaps(streams: list[Stream], start_s: float, end_s: float) -> list[float]:
    return [gap for one in streams for gap in one.gaps_between(start_s, end_s)]


def stretch(streams: list[Stream], long: Stream) -> float:
    """p99 of the gaps while the long prompt is read / p99 before."""
    calm = gaps(streams, 2.0, LONG_S)
    during = gaps(streams, LONG_S, long.token_times_s[0])
    assert len(during) > 10 * len(streams)
    return quantile(during, 0.99) / quantile(calm, 0.99)


@pytest.mark.parametrize("count", [1, 8, 32])
def test_a_long_prompt_at_most_doubles_the_gaps(count: int) -> None:
    streams, long = streaming(count), Stream(LONG_S, LONG, 8)
    play([*streams, long])
    assert 1.6 < stretch(streams, long) <= 2.0
    # It has nearly two fifths of the time, beside the few steps that only decode.
    assert long.ttft_s < LONG * 0.00065 / 0.38


@pytest.mark.parametrize("count", [8, 32])
def test_without_the_pace_they_are_many_times_as_long(count: int) -> None:
    streams, long = streaming(count), Stream(LONG_S, LONG, 8)
    play([*streams, long], max_itl_stretch=0)
    during = gaps(streams, LONG_S, long.token_times_s[0])
    assert max(during) > 8 * straight(count, 0)


def test_on_a_noisy_machine_too() -> None:
    def noisy(rng: random.Random, decodes: int, prefills: int) -> float:
        hiccup = 0.1 if rng.random() < 0.02 else 0.0
        return straight(decodes, prefills) * max(0.8, rng.gauss(1.0, 0.1)) + hiccup

    streams, long = streaming(), Stream(LONG_S, LONG, 8)
    play([*streams, long], noisy)
    calm = gaps(streams, 2.0, LONG_S)
    during = gaps(streams, LONG_S, long.token_times_s[0])
    for share in (0.5, 0.95):  # beyond that are the hiccups
        assert 1.5 < quantile(during, share) / quantile(calm, share) <= 2.0


@pytest.mark.parametrize("rank", [0, 1])
def test_streams_of_all_ranks_are_guarded(rank: int) -> None:
    # With all streams on rank 0: whether they are beside the long prompt or across.
    streams, long = streaming(), Stream(LONG_S, LONG, 8, rank=rank)
    play([*streams, long], num_ranks=2)
    assert 1.6 < stretch(streams, long) <= 2.0


def test_a_long_prompt_on_each_of_two_ranks_is_as_two_on_one() -> None:
    streams = streaming(num_ranks=2)
    long = [Stream(LONG_S, LONG, 8, rank=rank) for rank in range(2)]
    play([*streams, *long], num_ranks=2)
    assert 1.6 < stretch(streams, long[0]) <= 3.0


def burst(start_s: float, spread_s: float = 0.0) -> list[Stream]:
    return [Stream(start_s + spread_s * index / 32, 128, 128) for index in range(32)]


def rate(run: Run, streams: list[Stream]) -> float:
    """Tokens a second, from the first arrival to the last token."""
    start_s = min(one.arrival_s for one in streams)
    return sum(one.max_tokens for one in streams) / (run.end_s - start_s)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("spread_s", [0.0, 0.2, 1.0])
def test_a_burst_is_as_fast_as_without_the_pace_but_for_3_percent(
    spread_s: float, warm: bool
) -> None:
    rates = []
    for max_itl_stretch in (0.0, 2.0):
        before = [Stream(0.0, 128, 64), *burst(20.0)] if warm else []
        streams = burst(60.0, spread_s)
        rates.append(rate(play([*before, *streams], max_itl_stretch=max_itl_stretch), streams))
        assert max(one.ttft_s for one in streams) < 3.5
    assert rates[1] > 0.97 * rates[0]


def test_a_crowd_of_long_prompts_is_not_held_back_for_a_few_streams() -> None:
    # Rows of prompts beyond what the pace alone would let through: it must not fall behind.
    results = []
    for max_itl_stretch in (0.0, 2.0):
        streams = [Stream(0.0, 512, 128, followers=3) for _ in range(32)]
        run = play(streams, max_itl_stretch=max_itl_stretch)
        results.append(rate(run, streams))
    assert len(streams) == 128
    assert results[1] > 0.97 * results[0]


def test_a_short_prompt_is_not_kept_waiting_for_a_long_one() -> None:
    """Each that waits behind the long one lets it go faster."""
    streams, long = streaming(), Stream(LONG_S, LONG, 8)
    short = [Stream(LONG_S + 0.5 + index * 0.1, 64, 8) for index in range(6)]
    play([*streams, long, *short])
    alone_s = LONG * 0.00065
    assert long.ttft_s < 1.5 * alone_s
    assert all(one.ttft_s < 1.5 * alone_s for one in short)


def weights_first(_rng: random.Random, decodes: int, prefills: int) -> float:
    """With any rows of prompts all weights are read, with a few decodes some."""
    return 0.025 + 0.004 * decodes + (0.08 if prefills else 0.0) + 0.0004 * prefills


def test_a_crowd_is_not_cut_small_for_who_came_first() -> None:
    def crowd(start_s: float) -> list[Stream]:
        return [Stream(start_s + 0.01 * (index > 0), 128, 64) for index in range(8)]

    streams = [one for start_s in range(0, 100, 20) for one in crowd(float(start_s))]
    run = play(streams, weights_first, max_rows=2048)
    assert [prefills for at_s, _, prefills in run.rows if prefills and at_s > 80] == [128, 896]
    # Before anything is known, by the least that goes on.
    first = [prefills for at_s, _, prefills in run.rows if prefills and at_s < 20]
    assert first[:2] == [128, 511]


def per_row(row_s: float) -> Callable[[random.Random, int, int], float]:
    return steady(lambda decodes, prefills: 0.010 + row_s * (decodes + prefills))


def test_where_rows_are_cheap_a_prompt_soon_has_all_that_a_step_may_have() -> None:
    run = play([Stream(0.0, 8192, 1)], per_row(0.0001), max_rows=2048)
    assert [prefills for _, _, prefills in run.rows] == [512, 512, 1024, 1024, 2048, 2048, 1024]


def test_where_they_are_dear_no_step_takes_long() -> None:
    row_s = 0.001
    alone, crowd = Stream(0.0, 4096, 1), burst(20.0)
    run = play([alone, *crowd], per_row(row_s), max_rows=2048)
    most = 0.75 / (row_s + 0.010 / 512)  # as dear as in the smaller steps seen before
    rows = [prefills for at_s, _, prefills in run.rows if at_s < 20.0]
    assert rows == [512, 512] + [pytest.approx(most, rel=0.03)] * 4 + [4096 - sum(rows[:-1])]
    ends_s = [0.0, *(at_s for at_s, _, _ in run.rows)]
    assert max(b - a for a, b in pairwise(ends_s) if a >= 20.0) < 0.85


def test_however_dear_512_rows_go_on() -> None:
    run = play([Stream(0.0, 1024, 1)], per_row(0.1), max_rows=2048)
    assert [prefills for _, _, prefills in run.rows] == [512, 512]


def test_who_wants_no_pace_has_whole_steps() -> None:
    run = play([Stream(0.0, 4096, 1)], per_row(0.1), max_rows=2048, max_itl_stretch=0)
    assert [prefills for _, _, prefills in run.rows] == [2048, 2048]


def test_streams_that_come_from_a_dead_actor_have_whole_steps() -> None:
    scheduler = Scheduler(SchedulerLimits(8, 512, 4096, 16, (), False), BlockPool(1024))
    now_s = 0.0

    def add(name: str, outputs: int) -> None:
        params = SamplingParams(max_tokens=1000, seed=0)
        tokens = (7,) * outputs
        scheduler.add(GenerateRequest(name, "ingress", (1,) * 400, params, tokens))

    def step() -> dict[str, int]:
        nonlocal now_s
        plan = scheduler.schedule()
        decodes = len(plan.decodes)
        scheduler.pace.begin(now_s, decodes, plan.num_rows - decodes)
        now_s += straight(decodes, plan.num_rows - decodes)
        scheduler.finish_step(plan, [(7, None)] * len(plan.sampling_chunks()))
        return {c.sequence.request_id: c.num_tokens for c in plan.decodes + plan.prefills}

    add("stream", 0)
    for _ in range(40):
        step()
    add("orphan", 50)
    add("prompt", 0)
    assert step() == {"stream": 1, "orphan": 450, "prompt": 16}
    assert step() == {"stream": 1, "orphan": 1, "prompt": 16}
