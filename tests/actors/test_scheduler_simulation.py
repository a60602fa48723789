"""Whole runs over a fake model that sees tokens only through the blocks it was told to use.

The oracle is the fake model run alone on plain lists. A row in the wrong place, a block with
two owners, a token computed twice or not at all: each changes what the model reads, and so
what the request answers.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from actors.messages import GenerateRequest, TokenEvent
from actors.scheduler import ScheduledChunk, Scheduler, SchedulerLimits, StepPlan
from model.block_pool import BlockPool
from model.sampling_params import SamplingParams, TokenLogprobs

VOCAB, EOS = 13, 0
Answer = tuple[list[int], str, int | None]


def next_token(tokens: Sequence[int], seed: int) -> int:
    return (sum((i + 3) * (t + 1) for i, t in enumerate(tokens)) * 7 + seed) % VOCAB


def alone(request: GenerateRequest, max_model_len: int) -> Answer:
    """What the request answers with the machine to itself."""
    params, outputs = request.params, [*request.output_token_ids]
    while True:
        token = next_token([*request.prompt_token_ids, *outputs], params.seed)
        outputs.append(token)
        if token == EOS and not params.ignore_eos:
            return outputs, "stop", None
        if token in params.stop_token_ids:
            return outputs, "stop", token
        if len(outputs) == params.max_tokens:
            return outputs, "length", None
        if len(request.prompt_token_ids) + len(outputs) == max_model_len:
            return outputs, "length", None


class Simulation:
    """A scheduler, a fake KV cache, and a record of what every client got."""

    def __init__(self, limits: SchedulerLimits, num_blocks: int) -> None:
        self.limits = limits
        self.pool = BlockPool(num_blocks)
        self.scheduler = Scheduler(limits, self.pool)
        self.slots: list[int | None] = [None] * (num_blocks * limits.block_size)
        self.requests: dict[str, GenerateRequest] = {}  # live, in order of arrival
        self.answers: dict[str, Answer] = {}
        self.got: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}  # rows of the live requests whose KV is in place
        self.past_prefill: set[str] = set()
        self.first_tokens: list[int] = []  # arrivals, in order of first token since joining
        self.joined: dict[str, int] = {}
        self.num_joined = self.num_mixed = self.num_cut = self.num_aborted = 0

    def add(self, request: GenerateRequest) -> None:
        if request.request_id not in self.answers:
            self.answers[request.request_id] = alone(request, self.limits.max_model_len)
            self.got[request.request_id] = []
        self.requests[request.request_id] = request
        self.computed[request.request_id] = 0
        self.joined[request.request_id] = self.num_joined
        self.num_joined += 1
        assert self.scheduler.add(request) == []

    def abort(self, request_id: str) -> None:
        assert self.scheduler.abort(request_id)
        assert not self.scheduler.abort(request_id)
        del self.requests[request_id], self.computed[request_id], self.joined[request_id]
        self.past_prefill.discard(request_id)
        self.num_aborted += 1

    def resubmit(self, request_id: str) -> None:
        """As after the death of an attention actor: the client's tokens come along."""
        request = self.requests[request_id]
        self.abort(request_id)
        self.num_aborted -= 1  # it goes on
        self.add(dataclasses.replace(request, output_token_ids=tuple(self.got[request_id])))

    def reset(self) -> None:
        self.scheduler.reset_computed()
        self.computed = dict.fromkeys(self.computed, 0)
        self.past_prefill.clear()
        self.slots = [None] * len(self.slots)
        assert self.scheduler.num_running == 0 and self.pool.num_free == self.pool.num_blocks
        self.scheduler.check_integrity()

    def step(self, abort_in_flight: Sequence[str] = ()) -> None:
        plan = self.scheduler.schedule()
        self.scheduler.check_integrity()
        self._check(plan)
        tokens = self._forward(plan)
        for request_id in abort_in_flight:
            self.abort(request_id)
            self.scheduler.check_integrity()
        for chunk in chunks_of(plan):  # nobody else may get what the forward pass writes
            blocks = len(chunk.sequence.block_ids)
            assert blocks * self.limits.block_size >= chunk.start + chunk.num_tokens
        events = self.scheduler.finish_step(plan, tokens)
        self.scheduler.check_integrity()
        self._take(plan, events)

    def drain(self) -> None:
        # Each step runs a row of the oldest request, and nobody preempts that one.
        bound = 1 + self.limits.max_model_len * len(self.requests)
        while self.requests:
            bound -= 1
            assert bound > 0, "no progress"
            self.step()
        assert not self.scheduler.has_work
        assert self.pool.num_free == self.pool.num_blocks

    def _check(self, plan: StepPlan) -> None:
        chunks = chunks_of(plan)
        ids = [c.sequence.request_id for c in chunks]
        assert plan.num_rows == sum(c.num_tokens for c in chunks)
        assert plan.num_rows <= self.limits.max_num_batched_tokens
        assert bool(plan) == bool(self.requests) == self.scheduler.has_work
        assert len(set(ids)) == len(ids) <= self.limits.max_num_seqs
        assert set(ids) <= set(self.requests)
        # Every decode has its row, unless it gave way to an older one.
        decodes = [c.sequence.request_id for c in plan.decodes]
        assert set(decodes) | (set(plan.preempted) & self.past_prefill) == self.past_prefill
        assert not set(plan.preempted) & set(ids)
        for victim in plan.preempted:
            assert all(self.joined[victim] > self.joined[request_id] for request_id in ids)
            self.computed[victim] = 0
            self.past_prefill.discard(victim)
        for chunk in plan.decodes:
            assert chunk.num_tokens == 1 and chunk.samples
        if self.requests:
            assert min(self.requests, key=lambda r: self.joined[r]) in ids, "the oldest waits"
        self.num_mixed += bool(plan.decodes and plan.prefills)
        self.num_cut += sum(not c.samples for c in plan.prefills)

    def _forward(self, plan: StepPlan) -> list[tuple[int, TokenLogprobs | None]]:
        size, written = self.limits.block_size, set[int]()
        for chunk in chunks_of(plan):
            sequence, request_id = chunk.sequence, chunk.sequence.request_id
            assert chunk.start == self.computed[request_id], "rows left out or repeated"
            for position in range(chunk.start, chunk.start + chunk.num_tokens):
                slot = sequence.block_ids[position // size] * size + position % size
                assert slot not in written
                written.add(slot)
                self.slots[slot] = sequence.token_ids[position]
            self.computed[request_id] += chunk.num_tokens
        tokens: list[tuple[int, TokenLogprobs | None]] = []
        for chunk in plan.decodes + plan.prefills:
            if chunk.samples:
                blocks = chunk.sequence.block_ids
                read = [
                    self.slots[blocks[position // size] * size + position % size]
                    for position in range(chunk.start + chunk.num_tokens)
                ]
                assert None not in read
                token = next_token(
                    [t for t in read if t is not None], chunk.sequence.request.params.seed
                )
                tokens.append((token, None))
        return tokens

    def _take(self, plan: StepPlan, events: list[TokenEvent]) -> None:
        sampling = [c.sequence.request_id for c in plan.decodes + plan.prefills if c.samples]
        assert [e.request_id for e in events] == [r for r in sampling if r in self.requests]
        for event in events:
            request_id = event.request_id
            if request_id not in self.past_prefill and not self.got[request_id]:
                self.first_tokens.append(self.joined[request_id])
            self.past_prefill.add(request_id)
            self.got[request_id] += event.token_ids
            outputs, reason, stop_token_id = self.answers[request_id]
            if event.finish_reason is None:
                assert event.stop_token_id is None
                assert self.got[request_id] == outputs[: len(self.got[request_id])]
                assert len(self.got[request_id]) < len(outputs)
            else:
                assert self.got[request_id] == outputs
                assert (event.finish_reason, event.stop_token_id) == (reason, stop_token_id)
                del self.requests[request_id], self.computed[request_id]
                del self.joined[request_id]
                self.past_prefill.remove(request_id)
        assert self.first_tokens == sorted(self.first_tokens), "someone was overtaken"


def chunks_of(plan: StepPlan) -> list[ScheduledChunk]:
    return plan.decodes + plan.prefills


def make_limits(seqs: int, budget: int, model_len: int, block_size: int) -> SchedulerLimits:
    return SchedulerLimits(seqs, budget, model_len, block_size, frozenset({EOS}))


def random_request(rng: random.Random, request_id: str, max_model_len: int) -> GenerateRequest:
    length = rng.randint(1, max_model_len - 1)
    return GenerateRequest(
        request_id=request_id,
        ingress_id="ingress",
        prompt_token_ids=tuple(rng.randrange(1, VOCAB) for _ in range(length)),
        params=SamplingParams(
            max_tokens=rng.randint(1, max_model_len),
            seed=rng.randrange(1000),
            ignore_eos=rng.random() < 0.6,
            stop_token_ids=tuple(rng.sample(range(VOCAB), rng.choice([0, 0, 0, 1, 2]))),
        ),
    )


def test_a_long_run_with_every_kind_of_trouble() -> None:
    rng = random.Random(7)
    simulation = Simulation(make_limits(6, 16, 40, 4), num_blocks=17)
    for number in range(300):
        simulation.add(random_request(rng, f"r{number}", 40))
        for _ in range(rng.choice([0, 1, 3, 12])):
            live = list(simulation.requests)
            in_flight = rng.sample(live, 1) if live and rng.random() < 0.03 else []
            simulation.step(in_flight)
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
    assert simulation.scheduler.num_preemptions_total > 20
    assert simulation.num_mixed > 100 and simulation.num_cut > 100
    finished = [
        r for r, (outputs, _, _) in simulation.answers.items() if simulation.got[r] == outputs
    ]
    assert simulation.num_aborted > 20
    assert len(finished) == 300 - simulation.num_aborted
    assert {simulation.answers[r][1] for r in finished} == {"stop", "length"}


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of calls, on limits and pools as small as they may be."""

    @initialize(
        seqs=st.integers(1, 5),
        budget=st.integers(1, 12),
        model_len=st.integers(2, 24),
        block_size=st.integers(1, 5),
        spare_blocks=st.integers(0, 8),
    )
    def start(
        self, seqs: int, budget: int, model_len: int, block_size: int, spare_blocks: int
    ) -> None:
        num_blocks = -(-model_len // block_size) + spare_blocks
        limits = make_limits(seqs, budget, model_len, block_size)
        self.simulation = Simulation(limits, num_blocks)

    def live(self, number: int) -> str:
        requests = list(self.simulation.requests)
        return requests[number % len(requests)]

    @rule(seed=st.integers(0, 10_000), count=st.integers(1, 4))
    def add(self, seed: int, count: int) -> None:
        rng = random.Random(seed)
        for _ in range(count):
            name = f"r{self.simulation.num_joined}"
            request = random_request(rng, name, self.simulation.limits.max_model_len)
            self.simulation.add(request)

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.simulation.step()

    @precondition(lambda self: self.simulation.requests)
    @rule(numbers=st.lists(st.integers(0, 20), min_size=1, max_size=3))
    def abort_in_flight(self, numbers: list[int]) -> None:
        self.simulation.step(sorted({self.live(number) for number in numbers}))

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
