"""The choice of micro-batches, over a pipeline whose times are a formula."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from actors.scheduling.micro_batches import ASK_EVERY, FEWEST_ROWS, MicroBatches, RunStep
from model.overlap import LinearCost, OverlapCosts

MANY = (64, 70, 100, 130, 256, 500)


@dataclass
class Simulated:
    """Steps of a pipeline that costs what `costs` says, plus `surcharge` for each cut."""

    costs: OverlapCosts
    surcharge: Callable[[int], float] = lambda _micro_batches: 1.0
    noise: float = 0.0
    choice: MicroBatches = field(default_factory=lambda: MicroBatches(0))
    random: random.Random = field(default_factory=lambda: random.Random(1))
    asked: int = 0

    def step(self, rows: int, others: int = 0, agreed: int | None = None) -> int:
        """Run one; returns what was proposed for it."""
        proposed = self.choice.propose(rows)
        used = agreed or proposed
        attention_s = self.costs.attention.of(used, rows)
        slower = 1.0 + self.noise * self.random.random()
        layers_s = self.costs.step_s(used, rows, rows + others) * self.surcharge(used) * slower
        busy_s: list[float] = []
        if self.choice.asks_busy:
            self.asked += 1
            expert_s = self.costs.expert.of(used, rows + others)
            busy_s = [expert_s / 2, expert_s]
        step = RunStep(used, rows, layers_s, max(0.0, layers_s - attention_s))
        self.choice.observe(step, rows + others, busy_s)
        return proposed

    def steps(self, count: int, rows: tuple[int, ...] = MANY) -> list[int]:
        return [self.step(self.random.choice(rows)) for _ in range(count)]


def costs(
    attention: tuple[float, float], expert: tuple[float, float], travel: float = 0.0
) -> OverlapCosts:
    return OverlapCosts(LinearCost(*attention), LinearCost(*expert), LinearCost(0.0, travel))


BALANCED = costs((1e-3, 1e-4), (1e-3, 1e-4))
MEMORY_BOUND = costs((1e-3, 1e-4), (100e-3, 1e-5))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_where_it_pays_it_is_used(noise: float) -> None:
    pipeline = Simulated(BALANCED, noise=noise)
    pipeline.steps(1000)
    later = pipeline.steps(4000)
    # All but the steps of trials, which are not cut. Three are hardly worse: noise may choose them.
    assert sum(m > 1 for m in later) > 0.95 * len(later)
    assert sum(m == 2 for m in later) > (0.7 if noise else 0.95) * len(later)


def test_where_ways_are_long_three_are_used() -> None:
    pipeline = Simulated(costs((1e-3, 1e-4), (1e-3, 1e-4), travel=1e-4))
    pipeline.steps(1000)
    assert pipeline.steps(4000).count(3) > 3800


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_while_experts_are_bound_by_memory_it_is_not_even_tried(noise: float) -> None:
    assert set(Simulated(MEMORY_BOUND, noise=noise).steps(5000)) == {1}


def test_what_does_not_gain_is_given_up_and_hardly_ever_tried_again() -> None:
    # Both sides on the same cores: what was to overlap takes as long as ever, and a bit more.
    def contended(micro_batches: int) -> float:
        steps = {m: BALANCED.step_s(m, 100, 100) for m in (1, micro_batches)}
        return 1.05 * steps[1] / steps[micro_batches]

    pipeline = Simulated(BALANCED, contended, noise=0.1)
    proposed = pipeline.steps(20000, rows=(64, 100, 200))
    assert 0 < sum(m > 1 for m in proposed) < 0.02 * len(proposed)
    assert sum(m > 1 for m in proposed[10000:]) < 0.01 * 10000


def test_it_is_given_up_when_it_pays_no_more_and_does_not_flap() -> None:
    worse = [1.0]
    pipeline = Simulated(BALANCED, lambda m: worse[0] if m > 1 else 1.0, noise=0.1)
    pipeline.steps(2000)
    worse[0] = 2.0
    pipeline.steps(2000)
    assert pipeline.steps(2000).count(2) < 100
    # As fast as uncut within a hair: whatever is in use stays in use.
    even = BALANCED.step_s(1, 100, 100) / BALANCED.step_s(2, 100, 100)
    worse[0] = even
    runs = pipeline.steps(20000, rows=(100,))
    assert sum(m > 1 for m in runs) < 0.02 * len(runs)


def test_few_rows_are_never_cut() -> None:
    pipeline = Simulated(BALANCED)
    pipeline.steps(3000)
    assert pipeline.step(100) == 2
    assert set(pipeline.steps(500, rows=tuple(range(FEWEST_ROWS)))) == {1}
    assert pipeline.step(100) == 2


def test_sizes_are_judged_apart() -> None:
    # Few rows are bound by memory, many by arithmetic.
    pipeline = Simulated(costs((0.0, 1e-4), (12e-3, 2e-5)))
    pipeline.steps(4000, rows=(64, 500))
    assert {pipeline.step(64) for _ in range(40)} == {1}
    assert [pipeline.step(500) for _ in range(10)] == [2] * 10


def test_rows_of_other_ranks_count_for_the_experts() -> None:
    # Alone the experts would be idle most of the time; with the others' rows they are not.
    pipeline = Simulated(costs((1e-3, 1e-4), (1e-3, 1e-5)))
    assert set(pipeline.steps(3000)) == {1}
    busy = Simulated(costs((1e-3, 1e-4), (1e-3, 1e-5)))
    for _ in range(3000):
        rows = busy.random.choice(MANY)
        busy.step(rows, others=9 * rows)
    assert busy.step(256, others=9 * 256) == 2


def test_a_rank_that_is_not_followed_learns_nothing_false() -> None:
    pipeline = Simulated(BALANCED)
    for _ in range(3000):
        pipeline.step(pipeline.random.choice(MANY), agreed=1)
    assert {pipeline.step(100, agreed=1) for _ in range(100)} == {1}


def test_experts_are_asked_now_and_then() -> None:
    pipeline = Simulated(MEMORY_BOUND)
    pipeline.steps(10 * ASK_EVERY)
    assert pipeline.asked == 10


@pytest.mark.parametrize("fixed", [1, 2, 3])
def test_a_fixed_number_is_always_the_same_and_asks_nobody(fixed: int) -> None:
    pipeline = Simulated(MEMORY_BOUND, choice=MicroBatches(fixed))
    assert set(pipeline.steps(100, rows=(1, 3, 100))) == {fixed}
    assert pipeline.asked == 0


@pytest.mark.parametrize("number", [-1, 4])
def test_other_numbers_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"micro_batches must be from 0 to 3, got {number}"):
        MicroBatches(number)
