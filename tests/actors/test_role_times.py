"""Where the time of steps goes: three phases a role, which together are what a rank was at."""

from __future__ import annotations

import time
from pathlib import Path

from tests.actors.test_overlapped_steps import ROWS, slowed
from tests.actors.threaded_pipeline import running
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import greedy_requests, make_prompts, tiny_plan

ATTENTION_S, EXPERT_S = 1e-4, 3e-4  # a row and layer


def test_each_role_is_told_what_it_did_and_what_it_waited_for(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "model", hidden=32, ffn=48)
    plan = tiny_plan(directory, attention_actors=1, expert_actors=1, max_num_seqs=ROWS)
    requests = greedy_requests(make_prompts(512, [4] * ROWS), 6, ignore_eos=True)
    with running(plan) as pipeline:
        slowed(pipeline, ATTENTION_S, EXPERT_S, 0.0)
        began_s = time.monotonic()
        pipeline.submit(0, requests)
        pipeline.until_ended(len(requests))
        took_s = time.monotonic() - began_s
        pipeline.stop()
    attention, expert = pipeline.engines[0].stats(), pipeline.expert_times[0]
    rows = attention.num_rows * plan.model.num_layers
    assert expert.rows == rows
    # Each waits for as long as the other works, if nothing overlaps.
    assert attention.compute_s >= rows * ATTENTION_S
    assert expert.compute_s >= rows * EXPERT_S
    assert attention.wait_s >= rows * EXPERT_S
    assert 0 < attention.communication_s < attention.compute_s
    assert 0 < expert.communication_s < expert.compute_s
    # One layer's attention comes before the first rows of a step: what experts wait for then is
    # the whole step's beginning.
    assert expert.wait_s >= rows * ATTENTION_S
    # Nothing is counted twice, and little is left out: what lies between two steps.
    spent_s = attention.wait_s + attention.compute_s + attention.communication_s
    assert 0.7 * took_s < spent_s < took_s


def test_colocated_experts_are_compute_alone(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "model", hidden=32, ffn=48)
    requests = greedy_requests(make_prompts(512, [4] * 4), 6, ignore_eos=True)
    with running(tiny_plan(directory, micro_batches=3)) as pipeline:
        pipeline.submit(0, requests)
        pipeline.until_ended(len(requests))
        pipeline.stop()
    stats = pipeline.engines[0].stats()
    assert (stats.wait_s, stats.communication_s) == (0.0, 0.0)
    assert stats.compute_s > 0.0
    assert stats.micro_batches == 1
