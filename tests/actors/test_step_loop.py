"""The step loop with real engines: lockstep over topologies, wake, abort, refusal, stop."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from actors.messages import GenerateRequest, TokenEvent
from actors.ranks import step_loop
from actors.ranks.engine_build import colocated_engine
from tests.actors.threaded_pipeline import CPU, running
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

MAX_TOKENS = 20
LENGTHS = (40, 1, 17, 9, 5, 30)


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


def renamed(requests: list[GenerateRequest], tag: str) -> list[GenerateRequest]:
    """The same requests under new ids."""
    return [replace(request, request_id=f"{request.request_id}-{tag}") for request in requests]


@pytest.mark.parametrize(
    ("num_attention", "num_expert"), [(1, 0), (1, 1), (1, 3), (2, 1), (2, 2), (3, 4)]
)
def test_every_topology_gives_the_colocated_engines_tokens(
    directory: Path,
    requests: list[GenerateRequest],
    reference: list[Generated],
    num_attention: int,
    num_expert: int,
) -> None:
    plan = tiny_plan(
        directory,
        num_blocks=33,
        max_num_batched_tokens=16,
        attention_actors=num_attention,
        expert_actors=num_expert,
    )
    with running(plan) as pipeline:
        # All on one rank, then all on another, then on every rank at once.
        for rank in (0, num_attention - 1):
            batch = renamed(requests, f"alone{rank}")
            pipeline.submit(rank, batch)
            assert_same(collect(pipeline.until_ended(len(batch)), batch), reference)
        batches = [renamed(requests, f"all{rank}") for rank in range(num_attention)]
        for rank, batch in enumerate(batches):
            pipeline.submit(rank, batch)
        everything = [request for batch in batches for request in batch]
        events = pipeline.until_ended(len(everything))
        assert_same(collect(events, everything), reference * num_attention)
        pipeline.stop(rank=num_attention - 1)
    assert any(engine.stats().num_preemptions for engine in pipeline.engines)
    for engine, load in zip(pipeline.engines, pipeline.loads, strict=True):
        assert engine.stats().num_rows > 0
        assert engine.stats().kv_cache_usage == 0.0
        assert {sum(row) for row in load.totals()} == {plan.model.top_k * engine.stats().num_rows}
    assert all(loop.num_unfinished == 0 for loop in pipeline.loops)
    if num_expert:
        rows = sum(engine.stats().num_rows for engine in pipeline.engines) * plan.model.num_layers
        served = sum(times.rows for times in pipeline.expert_times)
        assert rows <= served <= rows * min(plan.model.top_k, num_expert)


def test_a_step_gives_each_ingress_one_message_with_its_own_requests(
    directory: Path, requests: list[GenerateRequest], reference: list[Generated]
) -> None:
    batch = [replace(r, ingress_id=f"ingress{i % 2}") for i, r in enumerate(requests)]
    owner = {r.request_id: r.ingress_id for r in batch}
    with running(tiny_plan(directory)) as pipeline:
        pipeline.submit(0, batch)
        got: list[TokenEvent] = []
        messages = 0
        while sum(event.finish_reason is not None for event in got) < len(batch):
            _, ingress, events = pipeline.next_events()
            ids = [event.request_id for event in events]
            assert len(set(ids)) == len(ids)
            assert {owner[one] for one in ids} == {ingress}
            got += events
            messages += 1
    assert_same(collect(got, batch), reference)
    # All prompts fit one step, so every one of the steps told both.
    assert messages == 2 * MAX_TOKENS == 2 * pipeline.engines[0].stats().num_steps


def test_a_refused_request_ends_and_the_others_go_on(
    directory: Path, requests: list[GenerateRequest], reference: list[Generated]
) -> None:
    refused = replace(requests[0], request_id="no", prompt_token_ids=())
    complete = replace(requests[0], request_id="done", output_token_ids=reference[0].token_ids)
    batch = [requests[1], refused, complete, requests[2]]
    with running(tiny_plan(directory)) as pipeline:
        pipeline.submit(0, batch)
        got = collect(pipeline.until_ended(4), batch)
        assert got[1] == Generated((), (), "abort")
        assert got[2] == Generated((), (), "length")
        assert_same([got[0], got[3]], reference[1:3])


@pytest.mark.parametrize("num_expert", [0, 2])
def test_an_aborted_request_frees_its_blocks_and_says_no_more(
    directory: Path,
    requests: list[GenerateRequest],
    reference: list[Generated],
    num_expert: int,
) -> None:
    # The cache has room for one of the long ones at a time: the second gets it from the first.
    plan = tiny_plan(
        directory, num_blocks=32, attention_actors=2, expert_actors=num_expert, max_num_seqs=1
    )
    long = [replace(r, params=replace(r.params, max_tokens=120)) for r in requests[:2]]
    with running(plan) as pipeline:
        pipeline.submit(1, long)
        _, _, events = pipeline.next_events()
        assert [event.request_id for event in events] == ["r0"]
        pipeline.loops[1].abort(["r0", "unknown"])
        pipeline.loops[0].wake()
        while events[0].request_id != "r1":
            _, _, events = pipeline.next_events()
            assert events[0].finish_reason is None
        assert pipeline.loops[1].num_unfinished == 1
        pipeline.loops[1].abort(["r1"])
        last = replace(requests[2], request_id="last")
        pipeline.submit(1, [last])
        events = []
        while not any(event.request_id == "last" for event in events):
            _, _, events = pipeline.next_events()
        rest = events + pipeline.until_ended(1)
        assert_same(collect(rest, [last]), [reference[2]])
        assert pipeline.loops[1].num_unfinished == 0
        pipeline.stop()
        assert pipeline.engines[1].stats().kv_cache_usage == 0.0
        with pytest.raises(queue.Empty):
            pipeline.emitted.get_nowait()


def test_a_stop_ends_all_ranks_in_the_middle_of_their_work(
    directory: Path, requests: list[GenerateRequest]
) -> None:
    plan = tiny_plan(directory, attention_actors=2, expert_actors=2)
    long = [replace(r, params=replace(r.params, max_tokens=60)) for r in requests]
    with running(plan) as pipeline:
        pipeline.submit(0, long)
        pipeline.next_events()
        pipeline.stop(rank=1)
        assert pipeline.loops[0].num_unfinished == len(long)


def test_idle_ranks_meet_again_and_again(
    directory: Path,
    requests: list[GenerateRequest],
    reference: list[Generated],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step_loop, "_HEARTBEAT_S", 0.01)
    meetings: queue.Queue[int] = queue.Queue()
    with running(tiny_plan(directory, attention_actors=2, expert_actors=1)) as pipeline:
        pipeline.exchanges[0].on_open = meetings.put
        assert [meetings.get(timeout=10.0) for _ in range(20)] == [0] * 20
        pipeline.submit(1, requests)
        assert_same(collect(pipeline.until_ended(len(requests)), requests), reference)
        pipeline.stop()
        assert pipeline.expert_times[0].steps == pipeline.engines[1].stats().num_steps


def test_idle_ranks_meet_before_any_is_taken_for_lost(directory: Path) -> None:
    meetings: queue.Queue[int] = queue.Queue()
    with running(tiny_plan(directory, attention_actors=2, expert_actors=1)) as pipeline:
        for exchange in pipeline.exchanges:
            exchange.patience_s = 0.3
        pipeline.exchanges[0].on_open = meetings.put
        assert [meetings.get(timeout=2.0) for _ in range(30)] == [0] * 30
        pipeline.stop()


def test_a_rank_that_had_already_spoken_does_not_delay_what_comes_after(
    directory: Path, requests: list[GenerateRequest]
) -> None:
    # Rank 0 wakes alone and has told the others that it brings nothing, when a request comes:
    # it can bring that only to the step after, and its sleeping peers must be there.
    with running(tiny_plan(directory, attention_actors=2, expert_actors=1)) as pipeline:
        for attempt in range(3):
            one = replace(requests[1], request_id=f"attempt{attempt}")
            asleep = [threading.Event(), threading.Event()]
            for exchange, event in zip(pipeline.exchanges[:2], asleep, strict=True):
                exchange.on_open = lambda _rows, event=event: event.set()  # type: ignore[misc]
            pipeline.loops[0].abort(["nobody"])
            assert asleep[0].wait(10.0)
            started = time.monotonic()
            pipeline.submit(0, [one])
            pipeline.until_ended(1)
            assert time.monotonic() - started < 0.5 * step_loop._HEARTBEAT_S
