"""The pace on machines in virtual time, of one rank and of several in lockstep."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from actors.scheduling.step_pace import _DUE_EVERY, _STALE_STEPS, FLOOR_ROWS, StepPace

MAX_ROWS = 512
Seconds = Callable[[int, int], float]


class Clock:
    """Runs steps of one rank, or lets time pass."""

    def __init__(self, pace: StepPace, seconds: Seconds) -> None:
        self.pace, self.seconds = pace, seconds
        self.now_s = 0.0

    def step(self, decodes: int, prefills: int, peers: tuple[int, int] = (0, 0)) -> float:
        self.pace.begin(self.now_s, decodes, prefills, *peers)
        took_s = self.seconds(decodes + peers[0], prefills + peers[1])
        self.now_s += took_s
        return took_s

    def prompt_step(self, decodes: int, prompts: int = 1) -> tuple[int, float]:
        rows = self.pace.max_prefill_rows(decodes, prompts)
        return rows, self.step(decodes, rows)


def machine(row_s: float = 0.00065, fixed_s: float = 0.0) -> Seconds:
    def seconds(decodes: int, prefills: int) -> float:
        return 0.01 + 0.001 * decodes + (fixed_s + row_s * prefills if prefills else 0.0)

    return seconds


def test_told_of_nothing_it_holds_nothing_back() -> None:
    pace = StepPace(MAX_ROWS, 2.0)
    assert [pace.max_prefill_rows(n, 1) for n in (0, 1, 64)] == [MAX_ROWS] * 3


def test_switched_off_it_holds_nothing_back() -> None:
    clock = Clock(StepPace(MAX_ROWS, 0), machine())
    for _ in range(100):
        clock.step(8, 0)
        assert clock.prompt_step(8)[0] == MAX_ROWS


def test_without_decodes_prompts_have_whole_steps() -> None:
    clock = Clock(StepPace(MAX_ROWS, 2.0), machine())
    for _ in range(50):
        clock.step(8, 0)
    assert clock.pace.max_prefill_rows(8, 1) < MAX_ROWS
    assert clock.pace.max_prefill_rows(0, 1) == MAX_ROWS


def test_the_first_rows_beside_decodes_are_few_for_each_prompt() -> None:
    clock = Clock(StepPace(MAX_ROWS, 2.0), machine())
    clock.step(0, 400)
    assert [clock.pace.max_prefill_rows(8, n) for n in (1, 3, 64)] == [16, 48, MAX_ROWS]


@settings(deadline=None)
@given(
    row_s=st.floats(2e-5, 1e-3),
    fixed_s=st.sampled_from([0.0, 0.004, 0.01]),
    decodes=st.integers(1, 64),
    stretch=st.floats(1.5, 5.0),
)
def test_steps_come_near_the_stretch_and_not_beyond(
    row_s: float, fixed_s: float, decodes: int, stretch: float
) -> None:
    seconds = machine(row_s, fixed_s)
    clock = Clock(StepPace(MAX_ROWS, stretch), seconds)
    for _ in range(20):
        calm_s = clock.step(decodes, 0)
    spare_s = (stretch - 1.0) * calm_s
    assume(spare_s > 1.6 * (seconds(decodes, FLOOR_ROWS) - calm_s))
    most_s = max(stretch * calm_s, seconds(decodes, FLOOR_ROWS))
    steps = [clock.prompt_step(decodes) for _ in range(200)]
    assert all(took_s <= most_s + 1e-9 for _, took_s in steps)
    # Of the time to spare three tenths are left, or a little more.
    wanted_s = min(calm_s + 0.6 * spare_s, seconds(decodes, MAX_ROWS))
    paced = [one for one in steps[100:] if one[0]]
    assert len(paced) > 90
    assert all(took_s > wanted_s - 1.1 * row_s for rows, took_s in paced)


def test_each_prompt_that_waits_brings_as_much_again() -> None:
    clock = Clock(StepPace(MAX_ROWS, 2.0), machine())
    for _ in range(20):
        calm_s = clock.step(8, 0)
    for prompts in (1, 2, 4):
        for _ in range(40):
            rows, took_s = clock.prompt_step(8, prompts)
        assert rows and took_s == pytest.approx(calm_s * (1 + 0.7 * prompts), rel=0.02)


def test_a_noisy_machine_and_its_hiccups_do_not_carry_it_away() -> None:
    rng = random.Random(3)

    def noisy(decodes: int, prefills: int) -> float:
        hiccup = 0.5 if rng.random() < 0.05 else 0.0
        return machine()(decodes, prefills) * max(0.8, rng.gauss(1.0, 0.1)) + hiccup

    clock = Clock(StepPace(MAX_ROWS, 2.0), noisy)
    clock.now_s = 100.0
    for _ in range(20):
        clock.step(8, 0)
    rows = [clock.prompt_step(8)[0] for _ in range(1000)]
    took_s = sorted(machine()(8, one) / machine()(8, 0) for one in rows)
    assert took_s[990] < 2.0
    assert took_s[500] > 1.5


def test_a_step_that_only_decodes_comes_when_none_has_for_long() -> None:
    clock = Clock(StepPace(MAX_ROWS, 2.0), machine())
    for _ in range(20):
        clock.step(8, 0)
    rows = [clock.prompt_step(8)[0] for _ in range(400)]
    calm = [index for index, one in enumerate(rows) if one == 0]
    apart = {b - a for a, b in pairwise(calm)}
    assert _STALE_STEPS <= min(apart) <= max(apart) <= _STALE_STEPS + _DUE_EVERY
    assert len(calm) == 10
    # Never where this rank decodes nothing: its step would be empty.
    idle = StepPace(MAX_ROWS, 2.0)
    for _ in range(300):
        idle.begin(0.0, 0, 40, 8)
        assert idle.max_prefill_rows(0, 1) >= FLOOR_ROWS


def test_more_streams_than_ever_are_measured_soon() -> None:
    clock = Clock(StepPace(MAX_ROWS, 2.0), machine())
    for _ in range(20):
        clock.step(1, 0)
    rows = [clock.prompt_step(48)[0] for _ in range(40)]
    assert 0 in rows[:_DUE_EVERY]
    assert machine()(48, rows[-1]) == pytest.approx(1.7 * machine()(48, 0), rel=0.05)


def test_a_recovery_is_not_taken_for_a_step() -> None:
    clock = Clock(StepPace(MAX_ROWS, 2.0), machine())
    clock.step(8, 0)
    clock.now_s += 30.0
    clock.pace.interrupt()
    clock.step(8, FLOOR_ROWS)
    clock.step(8, FLOOR_ROWS)
    # No step that only decodes has been seen from its beginning to its end.
    assert clock.pace.max_prefill_rows(8, 1) == FLOOR_ROWS


def test_a_rest_is_not_taken_for_a_step() -> None:
    clock = Clock(StepPace(MAX_ROWS, 2.0), machine())
    clock.step(8, 0)
    clock.step(0, 0)
    clock.now_s += 30.0
    clock.step(8, 16)
    clock.step(8, 0)
    assert clock.pace.max_prefill_rows(8, 1) <= 32


def test_streams_of_another_rank_are_held_to_the_pace_too() -> None:
    clock = Clock(StepPace(MAX_ROWS, 2.0), machine())
    for _ in range(5):
        clock.step(0, 0, (8, 0))
    for _ in range(20):
        rows = clock.pace.max_prefill_rows(0, 1)
        clock.step(0, rows, (8, 0))
    calm_s, mixed_s = clock.seconds(8, 0), clock.seconds(8, rows)
    assert FLOOR_ROWS < rows < MAX_ROWS
    assert mixed_s == pytest.approx(1.7 * calm_s, rel=0.05)


def test_ranks_count_alike_to_the_steps_that_only_decode() -> None:
    # One has run for longer; since the epoch began both have begun the same steps.
    ranks = [Clock(StepPace(MAX_ROWS, 2.0), machine()) for _ in range(2)]
    for _ in range(21):
        ranks[0].step(8, 0)
    for one in ranks:
        one.pace.interrupt()
    due: list[list[int]] = [[], []]
    brought = [0, 0]
    for step in range(300):
        brought = [one.pace.max_prefill_rows(8, 1) for one in ranks]
        for index, one in enumerate(ranks):
            one.step(8, brought[index], (8, brought[1 - index]))
            if not brought[index]:
                due[index].append(step)
    assert len(due[0]) >= 5
    assert due[0][-5:] == due[1][-5:]
