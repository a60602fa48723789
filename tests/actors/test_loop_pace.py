"""What step loops tell the pace: every step, whose rows it has, and every rest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from actors.messages import GenerateRequest
from actors.scheduling.step_pace import StepPace
from tests.actors.threaded_pipeline import ThreadedPipeline, running
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import greedy_requests, make_prompts, tiny_plan

MAX_TOKENS = 20


class Recorder(StepPace):
    """A pace that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(512, 2.0)
        self.steps: list[tuple[float, int, int, tuple[int, int]]] = []
        self.epochs: list[int] = []  # how many steps there were when each began

    def begin(
        self,
        now_s: float,
        decodes: int,
        prefills: int,
        peer_decodes: int = 0,
        peer_prefills: int = 0,
    ) -> None:
        self.steps.append((now_s, decodes, prefills, (peer_decodes, peer_prefills)))
        super().begin(now_s, decodes, prefills, peer_decodes, peer_prefills)

    def interrupt(self) -> None:
        self.epochs.append(len(self.steps))
        super().interrupt()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("pace"), hidden=32, ffn=48)


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """One for each attention rank of a pipeline, once it has started."""
    made: list[Recorder] = []
    start = ThreadedPipeline.start

    def recorded_start(pipeline: ThreadedPipeline) -> None:
        for loop in pipeline.loops:
            loop._pace = Recorder()
            made.append(loop._pace)
        start(pipeline)

    monkeypatch.setattr(ThreadedPipeline, "start", recorded_start)
    return made


def batch(name: str, lengths: Sequence[int]) -> list[GenerateRequest]:
    requests = greedy_requests(make_prompts(512, lengths), MAX_TOKENS, ignore_eos=True)
    return [replace(one, request_id=f"{name}{i}") for i, one in enumerate(requests)]


@pytest.mark.parametrize(("num_attention", "num_expert"), [(1, 0), (1, 1), (3, 1)])
def test_every_rank_tells_all_steps_and_what_the_others_bring(
    directory: Path, recorders: list[Recorder], num_attention: int, num_expert: int
) -> None:
    plan = tiny_plan(
        directory,
        attention_actors=num_attention,
        expert_actors=num_expert,
        enable_prefix_caching=False,
    )
    began_s = time.monotonic()
    with running(plan) as pipeline:
        for rank in range(num_attention):
            pipeline.submit(rank, batch(f"r{rank}-", (40, 9 + rank, 3)))
        pipeline.until_ended(3 * num_attention)
        pipeline.stop(rank=num_attention - 1)
    assert all(one.epochs == [0] for one in recorders)
    for engine, recorder in zip(pipeline.engines, recorders, strict=True):
        times = [now_s for now_s, *_ in recorder.steps]
        assert began_s < times[0] and times == sorted(times) and times[-1] < time.monotonic()
        busy = [(decodes, prefills) for _, decodes, prefills, _ in recorder.steps]
        assert sum(decodes + prefills for decodes, prefills in busy) == engine.stats().num_rows
        assert sum(decodes + prefills > 0 for decodes, prefills in busy) == engine.stats().num_steps
        # The first token of each comes with its prompt.
        assert sum(decodes for decodes, _ in busy) == 3 * (MAX_TOKENS - 1)
        assert sum(prefills for _, prefills in busy) == sum(
            len(one.prompt_token_ids) for one in batch("", (40, 9 + recorders.index(recorder), 3))
        )
    # In lockstep: the n-th step of each is the same, and each is told the rows of all others.
    for steps in zip(*(recorder.steps for recorder in recorders)):
        own = [(decodes, prefills) for _, decodes, prefills, _ in steps]
        for index, (_, _, _, peers) in enumerate(steps):
            others = own[:index] + own[index + 1 :]
            assert peers == (sum(one[0] for one in others), sum(one[1] for one in others))


def test_a_rest_is_told_before_it_begins(directory: Path, recorders: list[Recorder]) -> None:
    with running(tiny_plan(directory, enable_prefix_caching=False)) as pipeline:
        for name in ("a", "b"):
            pipeline.submit(0, batch(name, (5,)))
            pipeline.until_ended(1)
        pipeline.stop()
    rows = [decodes + prefills for _, decodes, prefills, _ in recorders[0].steps]
    assert rows.count(5) == 2
    before_b = rows[: len(rows) - 1 - rows[::-1].index(5)]
    assert before_b[-1] == 0 and sum(before_b) == 5 + MAX_TOKENS - 1
