"""Micro-batches over real process groups: the same tokens, and time that overlaps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.messages import GenerateRequest, TokenEvent
from actors.ranks.engine_build import colocated_engine
from actors.scheduling import micro_batches
from model.exchange import PeerLost
from model.feed_forward import MixtureOfExperts
from model.row_flight import RowFlight
from tests.actors.threaded_pipeline import CPU, ThreadedPipeline, running
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import (
    Generated,
    assert_same,
    collect,
    greedy_requests,
    make_prompts,
    run_engine,
    tiny_plan,
)

# Prompts of one row, and some that do not fit one step of 16 rows.
LENGTHS = (40, 1, 17, 9, 2, 30)
MAX_TOKENS = 12


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), hidden=32, ffn=48)


@pytest.fixture(scope="module")
def requests() -> list[GenerateRequest]:
    return greedy_requests(make_prompts(512, LENGTHS), MAX_TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def reference(directory: Path, requests: list[GenerateRequest]) -> list[Generated]:
    engine = colocated_engine(tiny_plan(directory), CPU).engine
    return [run_engine(engine, [request])[0] for request in requests]


@pytest.mark.parametrize(("num_attention", "num_expert"), [(1, 1), (1, 3), (2, 2), (3, 1)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_gives_the_colocated_engines_tokens(
    directory: Path,
    requests: list[GenerateRequest],
    reference: list[Generated],
    num_attention: int,
    num_expert: int,
    count: int,
) -> None:
    plan = tiny_plan(
        directory,
        num_blocks=40,
        max_num_batched_tokens=16,
        attention_actors=num_attention,
        expert_actors=num_expert,
        micro_batches=count,
    )
    with running(plan) as pipeline:
        # Uneven: the last rank has them all but one, rank 0 that one, any other nothing.
        many = [replace(one, request_id=f"{one.request_id}-many") for one in requests[:-1]]
        pipeline.submit(num_attention - 1, many)
        pipeline.submit(0, requests[-1:])
        events = pipeline.until_ended(len(requests))
        assert_same(collect(events, [*many, requests[-1]]), reference)
        pipeline.stop()
    assert pipeline.engines[-1].stats().micro_batches == count
    for engine, load in zip(pipeline.engines, pipeline.loads, strict=True):
        assert {sum(row) for row in load.totals()} == {plan.model.top_k * engine.stats().num_rows}
    # The prompts' last step but few has fewer rows than three; buffers came as they were needed.
    most = max(len(dispatcher._flights) for dispatcher in pipeline.dispatchers)
    assert most == count
    assert all(len(one._flights) == len(one._free) for one in pipeline.dispatchers)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_interrupted_step_runs_again(
    directory: Path, requests: list[GenerateRequest], reference: list[Generated], count: int
) -> None:
    plan = tiny_plan(
        directory,
        max_num_batched_tokens=32,
        attention_actors=2,
        expert_actors=2,
        micro_batches=count,
    )
    pipeline = ThreadedPipeline(plan)
    dispatcher = pipeline.dispatchers[0]
    combine = dispatcher.combine
    # Far enough for the first tokens to be out: a step's rows are with the experts then.
    left = [10 * count]

    def interrupted(in_flight: RowFlight) -> torch.Tensor:
        if left[0]:
            left[0] -= 1
            return combine(in_flight)
        dispatcher.combine = combine  # type: ignore[method-assign]
        for one in pipeline.exchanges:
            one.abort()  # as the router has all ranks do
        raise PeerLost("the test has had enough")

    dispatcher.combine = interrupted  # type: ignore[method-assign]
    pipeline.start()
    batches = [requests, [replace(one, request_id=f"{one.request_id}-1") for one in requests]]
    for rank, batch in enumerate(batches):
        pipeline.submit(rank, batch)
    pipeline.join()
    assert len(pipeline.failures) == 4
    assert all(isinstance(failure, PeerLost) for failure in pipeline.failures)
    events: list[TokenEvent] = []
    while not pipeline.emitted.empty():
        events += pipeline.emitted.get_nowait()[2]
    assert events
    assert all(loop._plan for loop in pipeline.loops)

    pipeline.meet_again()
    pipeline.start()
    ended = {event.request_id for event in events if event.finish_reason is not None}
    everything = [*requests, *batches[1]]
    events += pipeline.until_ended(len(everything) - len(ended))
    told = sorted(event.request_id for event in events if event.recovered)
    assert told == sorted({one.request_id for one in everything} - ended)
    assert_same(collect(events, everything), reference * 2)
    pipeline.stop()
    # What was under way when the rank left is to use again.
    assert {len(dispatcher._flights) for dispatcher in pipeline.dispatchers} == {count}


def slowed(pipeline: ThreadedPipeline, attention: float, expert: float, fixed: float) -> None:
    """Each layer takes as long on either side as if it had hardware of its own: seconds a row,
    and for every batch that the experts compute. Sleep leaves this machine's cores to others."""
    experts = pipeline.engines[0]._decoder._feed_forward
    assert isinstance(experts, MixtureOfExperts)
    gates = experts._gates
    choose = type(gates[0]).__call__
    run: list[Callable[..., torch.Tensor]] = [server._shard.forward for server in pipeline.servers]

    class SlowGate:
        def __init__(self, gate: object) -> None:
            self._gate = gate

        def __call__(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            time.sleep(attention * len(x_TD))
            ids_TK, weights_TK = choose(self._gate, x_TD)  # type: ignore[arg-type]
            return ids_TK, weights_TK

    experts._gates = tuple(SlowGate(gate) for gate in gates)  # type: ignore[misc]
    for server, forward in zip(pipeline.servers, run, strict=True):

        def slow(
            layer: int,
            x_RD: torch.Tensor,
            ids_RK: torch.Tensor,
            weights_RK: torch.Tensor,
            forward: Callable[..., torch.Tensor] = forward,
        ) -> torch.Tensor:
            time.sleep(fixed + expert * len(x_RD))
            return forward(layer, x_RD, ids_RK, weights_RK)

        server._shard.forward = slow  # type: ignore[method-assign]


class Measured:
    """Steps of a pipeline with one attention rank, as its choice of micro-batches sees them."""

    def __init__(self, pipeline: ThreadedPipeline) -> None:
        self.steps: list[micro_batches.RunStep] = []
        choice = pipeline.engines[0].micro_batches
        observe = choice.observe

        def noted(step: micro_batches.RunStep, all_rows: int, busy_s: list[float]) -> None:
            self.steps.append(step)
            observe(step, all_rows, busy_s)

        choice.observe = noted  # type: ignore[method-assign, assignment]

    def median_s(self, rows: int, count: int) -> float:
        spent_s = sorted(
            s.layers_s for s in self.steps if (s.rows, s.micro_batches) == (rows, count)
        )
        return spent_s[len(spent_s) // 2]


ROWS = 64


def run_slowed(
    directory: Path, count: int, num_tokens: int, attention: float, expert: float, fixed: float
) -> Measured:
    plan = tiny_plan(
        directory,
        attention_actors=1,
        expert_actors=1,
        max_num_seqs=ROWS,
        max_num_batched_tokens=4 * ROWS,
        micro_batches=count,
    )
    prompts = make_prompts(512, [4] * ROWS)
    requests = greedy_requests(prompts, num_tokens, ignore_eos=True)
    with running(plan) as pipeline:
        slowed(pipeline, attention, expert, fixed)
        measured = Measured(pipeline)
        pipeline.submit(0, requests)
        pipeline.until_ended(len(requests))
    return measured


@pytest.mark.alone
def test_two_micro_batches_hide_one_side_behind_the_other(directory: Path) -> None:
    # 19 ms a layer on either side: twice that one after the other, but for the first at once.
    alone, cut = (run_slowed(directory, count, 8, 3e-4, 3e-4, 0.0) for count in (1, 2))
    whole_s, cut_s = alone.median_s(ROWS, 1), cut.median_s(ROWS, 2)
    assert whole_s > 2 * 2 * ROWS * 3e-4
    assert cut_s < 0.85 * whole_s  # of two layers 5/8, and what this process takes for its threads


@pytest.mark.parametrize(("expert", "fixed", "want"), [(3e-4, 0.0, 2), (0.0, 25e-3, 1)])
def test_the_choice_from_measured_times(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    expert: float,
    fixed: float,
    want: int,
) -> None:
    monkeypatch.setattr(micro_batches, "ASK_EVERY", 1)
    for _ in range(3):  # a busy machine may make a trial look worse than it is
        measured = run_slowed(directory, 0, 50, 3e-4, expert, fixed)
        decodes = [step.micro_batches for step in measured.steps if step.rows == ROWS]
        assert decodes[:5] == [1] * 5
        # What reads weights for every micro-batch is not even tried.
        assert set(decodes) <= {1, want}
        if decodes[-10:] == [want] * 10:
            return
    pytest.fail(f"in the end it was not {want}: {decodes}")
