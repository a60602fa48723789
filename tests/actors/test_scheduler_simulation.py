"""Whole runs with all that can happen to a scheduler; `simulated_scheduler.py` checks each step."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.actors.simulated_requests import make_limits, random_request
from tests.actors.simulated_scheduler import Simulation

_REQUESTS = 400


# The pace always lets 16 rows of a prompt go on: it shows in the second of these.
@pytest.mark.parametrize(
    ("budget", "max_model_len", "window", "num_blocks"),
    [(16, 40, None, 17), (64, 120, None, 51), (16, 40, 9, 14), (64, 120, 32, 27)],
)
@pytest.mark.parametrize("caching", [True, False])
def test_a_long_run_with_every_kind_of_trouble(
    caching: bool, budget: int, max_model_len: int, window: int | None, num_blocks: int
) -> None:
    rng = random.Random(7)
    limits = make_limits(6, budget, max_model_len, 4, caching, window)
    simulation = Simulation(limits, num_blocks)
    for number in range(_REQUESTS):
        simulation.add(random_request(rng, f"r{number}", max_model_len, simulation.now_s))
        for _ in range(rng.choice([0, 1, 3, 12])):
            live = list(simulation.requests)
            in_flight = rng.sample(live, 1) if live and rng.random() < 0.03 else []
            simulation.step(in_flight, fail_in_flight=rng.choice([0] * 60 + [1, 2]))
        live = list(simulation.requests)
        chance = rng.random()
        if live and chance < 0.05:
            simulation.abort(rng.choice(live))
        elif live and chance < 0.12:
            simulation.resubmit(rng.choice(live))
        elif chance < 0.15:
            simulation.reset()
    simulation.drain()
    # The run is worth something only if all of it happened.
    assert simulation.scheduler.num_preemptions_total > 10
    assert simulation.num_mixed > 100 and simulation.num_cut > 100
    assert simulation.num_overtook > 30 and simulation.num_paced > (5 if budget == 16 else 400)
    finished = [
        r for r, (outputs, _, _) in simulation.answers.items() if simulation.got[r] == outputs
    ]
    assert simulation.num_aborted > 20 and simulation.num_failed > 10
    assert len(finished) == _REQUESTS - simulation.num_aborted - simulation.num_failed
    assert (simulation.num_hits > 300) == caching
    assert (simulation.num_passed > 500) == (window is not None)
    assert (simulation.num_hits_behind > 5) == (caching and window is not None)
    assert {simulation.answers[r][1] for r in finished} == {"stop", "length"}


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of calls, on limits and pools as small as they may be."""

    @initialize(
        seqs=st.integers(1, 5),
        budget=st.integers(1, 12),
        model_len=st.integers(2, 24),
        block_size=st.integers(1, 5),
        spare_blocks=st.integers(0, 8),
        caching=st.sampled_from([True, True, True, False]),
        window=st.one_of(st.none(), st.integers(2, 12)),
    )
    def start(
        self,
        seqs: int,
        budget: int,
        model_len: int,
        block_size: int,
        spare_blocks: int,
        caching: bool,
        window: int | None,
    ) -> None:
        num_blocks = -(-model_len // block_size)
        if window is not None:  # one row and what it sees
            num_blocks = min(num_blocks, (window - 2) // block_size + 2)
        num_blocks += spare_blocks
        limits = make_limits(seqs, budget, model_len, block_size, caching, window)
        self.simulation = Simulation(limits, num_blocks)

    def live(self, number: int) -> str:
        requests = list(self.simulation.requests)
        return requests[number % len(requests)]

    @rule(seed=st.integers(0, 10_000), count=st.integers(1, 4))
    def add(self, seed: int, count: int) -> None:
        rng = random.Random(seed)
        for _ in range(count):
            name = f"r{self.simulation.num_joined}"
            simulation = self.simulation
            request = random_request(rng, name, simulation.limits.max_model_len, simulation.now_s)
            simulation.add(request)

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.simulation.step()

    @precondition(lambda self: self.simulation.requests)
    @rule(numbers=st.lists(st.integers(0, 20), min_size=1, max_size=3))
    def abort_in_flight(self, numbers: list[int]) -> None:
        self.simulation.step(sorted({self.live(number) for number in numbers}))

    @precondition(lambda self: self.simulation.requests)
    @rule(count=st.integers(1, 3))
    def fail(self, count: int) -> None:
        self.simulation.step(fail_in_flight=count)

    @precondition(lambda self: self.simulation.requests)
    @rule(number=st.integers(0, 20))
    def abort(self, number: int) -> None:
        self.simulation.abort(self.live(number))

    @precondition(lambda self: self.simulation.requests)
    @rule(number=st.integers(0, 20))
    def resubmit(self, number: int) -> None:
        self.simulation.resubmit(self.live(number))

    @rule()
    def reset(self) -> None:
        self.simulation.reset()

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "simulation"):
            scheduler = self.simulation.scheduler
            scheduler.check_integrity()
            assert scheduler.num_running + scheduler.num_waiting == len(self.simulation.requests)

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.drain()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
