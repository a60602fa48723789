"""Embeddings and classes against transformers: colocated, in chunks, and over expert ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from actors.messages import GenerateRequest, TokenEvent
from actors.model_plan import ModelPlan
from actors.ranks.engine import Engine
from actors.ranks.engine_build import colocated_engine
from model.head import Pooling
from model.sampling_params import SamplingParams
from tests.actors.threaded_pipeline import running
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import MAX_MODEL_LEN, make_prompts, tiny_plan

CPU = torch.device("cpu")
CHUNK = 16
LENGTHS = (33, 1, 90, 2, 16, 17, 55, MAX_MODEL_LEN)
PARAMS = SamplingParams(max_tokens=0, seed=0)

SHAPES: dict[str, dict[str, Any]] = {
    "mixtral-embed": {"head": "Model"},
    "mistral-embed": {"head": "Model", "experts": 0, "sliding_window": 9, "shards": 2},
    "mixtral-classify": {
        "head": "ForSequenceClassification", "id2label": {0: "sad", 1: "glad", 2: "neither"},
    },
    "mistral-classify": {"head": "ForSequenceClassification", "experts": 0},
}  # fmt: skip


def requests(prompts: list[tuple[int, ...]], pooling: Pooling) -> list[GenerateRequest]:
    return [
        GenerateRequest(f"r{i}", "ingress", prompt, PARAMS, pooling=pooling)
        for i, prompt in enumerate(prompts)
    ]


def vectors(events: list[TokenEvent], count: int) -> list[np.ndarray[Any, Any]]:
    assert {event.finish_reason for event in events} == {"stop"}
    assert not any(event.token_ids for event in events)
    by_id = {event.request_id: np.frombuffer(event.vector, "<f4") for event in events}
    assert len(by_id) == len(events) == count
    return [by_id[f"r{i}"] for i in range(count)]


def reference(directory: Path) -> Any:
    [architecture] = json.loads((directory / "config.json").read_text())["architectures"]
    kind: Any = getattr(transformers, architecture)
    return kind.from_pretrained(directory, dtype=torch.float32).eval()


@torch.inference_mode()
def expected(directory: Path, prompts: list[tuple[int, ...]], pooling: Pooling) -> Any:
    """What transformers says of each prompt, alone in its batch."""
    model, found = reference(directory), []
    for prompt in prompts:
        out = model(torch.tensor([prompt]))
        if hasattr(out, "logits"):
            found.append(out.logits[0].softmax(-1).numpy())
            continue
        rows_TD = out.last_hidden_state[0]
        vector_D = rows_TD[-1] if pooling == "last" else rows_TD.mean(0)
        found.append((vector_D / vector_D.norm()).numpy())
    return found


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def make(name: str) -> Path:
        return make_checkpoint(tmp_path_factory.mktemp(name), **SHAPES[name])

    return make


def run(engine: Engine, asked: list[GenerateRequest]) -> list[np.ndarray[Any, Any]]:
    events: list[TokenEvent] = []
    engine.run(asked, events.append)
    engine.scheduler.check_integrity()
    assert engine.stats().kv_cache_usage == 0.0
    return vectors(events, len(asked))


def assert_close(got: list[np.ndarray[Any, Any]], want: Any) -> None:
    for mine, reference in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=0, atol=2e-5)


def poolings(name: str) -> tuple[Pooling, ...]:
    return ("last", "mean") if name.endswith("embed") else ("last",)


@pytest.mark.parametrize("name", SHAPES)
def test_equals_transformers_in_one_chunk_and_in_many(
    name: str, directory_of: Callable[[str], Path]
) -> None:
    directory, prompts = directory_of(name), make_prompts(512, LENGTHS)
    whole = colocated_engine(tiny_plan(directory), CPU).engine
    chunked = tiny_plan(directory, max_num_batched_tokens=CHUNK, num_blocks=MAX_MODEL_LEN // 4)
    cut = colocated_engine(chunked, CPU).engine
    for pooling in poolings(name):
        want = expected(directory, prompts, pooling)
        assert np.ptp(np.stack(want), axis=0).max() > 0.01, "all alike: not worth comparing to"
        asked = requests(prompts, pooling)
        assert_close(run(whole, asked), want)
        assert_close(run(cut, asked), want)


def test_a_prefix_is_not_computed_again_for_the_last_row_and_is_for_a_mean(
    directory_of: Callable[[str], Path],
) -> None:
    directory = directory_of("mixtral-embed")
    [long] = make_prompts(512, [40])
    again = [long, long[:30] + (5, 6, 7)]
    engine = colocated_engine(tiny_plan(directory), CPU).engine
    run(engine, requests([long], "mean"))
    rows = engine.stats().num_rows
    assert_close(run(engine, requests(again, "mean")), expected(directory, again, "mean"))
    assert engine.stats().num_rows - rows == 40 + 33
    assert_close(run(engine, requests(again, "last")), expected(directory, again, "last"))
    # Of 40 tokens 36 lie in whole blocks of 4 before the last; of 33 the first 32.
    assert engine.stats().num_rows - rows == 40 + 33 + 4 + 1


def test_a_preempted_mean_adds_up_anew(directory_of: Callable[[str], Path]) -> None:
    directory, prompts = directory_of("mixtral-embed"), make_prompts(512, (100, 90))
    plan = tiny_plan(directory, max_num_batched_tokens=CHUNK, num_blocks=MAX_MODEL_LEN // 4)
    engine = colocated_engine(plan, CPU).engine
    later, urgent = requests(prompts, "mean")
    events = engine.add(later)
    for _ in range(4):
        events += engine.run_step(engine.plan_step())
    engine.add(replace(urgent, priority=-1))
    while engine.scheduler.has_work:
        events += engine.run_step(engine.plan_step())
    assert engine.stats().num_preemptions == 1
    assert_close(vectors(events, 2), expected(directory, prompts, "mean"))


def test_an_interrupted_step_counts_its_rows_once(directory_of: Callable[[str], Path]) -> None:
    directory, prompts = directory_of("mixtral-embed"), make_prompts(512, (60,))
    engine = colocated_engine(tiny_plan(directory, max_num_batched_tokens=CHUNK), CPU).engine
    [asked] = requests(prompts, "mean")
    events = engine.add(asked)
    feed_forward = engine._decoder._feed_forward
    while engine.scheduler.has_work:
        plan = engine.plan_step()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(feed_forward, "finish_step", lost)
            with pytest.raises(RuntimeError, match="a peer is gone"):
                engine.run_step(plan)
        events += engine.run_step(plan)
    assert_close(vectors(events, 1), expected(directory, prompts, "mean"))


def lost(_batches: object) -> None:
    raise RuntimeError("a peer is gone")


def test_what_is_aborted_leaves_nothing_behind(directory_of: Callable[[str], Path]) -> None:
    directory, prompts = directory_of("mixtral-embed"), make_prompts(512, (60,))
    engine = colocated_engine(tiny_plan(directory, max_num_batched_tokens=CHUNK), CPU).engine
    [asked] = requests(prompts, "mean")
    engine.add(asked)
    engine.run_step(engine.plan_step())
    assert engine._pooled is not None and list(engine._pooled._means) == ["r0"]
    engine.abort("r0")
    assert not engine._pooled._means and not engine.scheduler.has_work
    engine.add(asked)
    plan = engine.plan_step()
    engine.abort("r0")  # while its chunk is in flight
    assert engine.run_step(plan) == []
    assert not engine._pooled._means and engine.stats().kv_cache_usage == 0.0


def test_numbers_that_are_none_end_only_their_own_request(
    directory_of: Callable[[str], Path],
) -> None:
    directory, prompts = directory_of("mistral-classify"), make_prompts(512, (20, 30))
    engine = colocated_engine(tiny_plan(directory), CPU).engine
    embedding_VD = engine._decoder._weights.embedding_VD
    embedding_VD[prompts[0][7]] = torch.nan
    assert prompts[0][7] not in prompts[1]
    events: list[TokenEvent] = []
    engine.run(requests(prompts, "last"), events.append)
    ends = {event.request_id: event for event in events}
    assert ends["r0"].finish_reason == "abort" and not ends["r0"].vector
    assert_close(vectors([replace(ends["r1"], request_id="r0")], 1),
                 expected(directory, prompts[1:], "last"))  # fmt: skip


def test_what_the_model_does_not_give_is_refused(directory_of: Callable[[str], Path]) -> None:
    engine = colocated_engine(tiny_plan(directory_of("mixtral-embed")), CPU).engine
    with pytest.raises(ValueError, match="asks for what the model does not give"):
        engine.add(GenerateRequest("r0", "ingress", (1, 5), PARAMS))
    too_long = (1,) * (MAX_MODEL_LEN + 1)
    with pytest.raises(ValueError, match=f"from 1 to {MAX_MODEL_LEN} fit"):
        engine.add(GenerateRequest("r0", "ingress", too_long, PARAMS, pooling="last"))


@pytest.mark.parametrize("name, micro_batches", [("mixtral-embed", 3), ("mixtral-classify", 1)])
def test_equals_transformers_over_expert_ranks(
    name: str, micro_batches: int, directory_of: Callable[[str], Path]
) -> None:
    directory, prompts = directory_of(name), make_prompts(512, LENGTHS)
    plan: ModelPlan = tiny_plan(
        directory,
        attention_actors=2,
        expert_actors=2,
        max_num_batched_tokens=CHUNK,
        micro_batches=micro_batches,
    )
    with running(plan) as pipeline:
        for pooling in poolings(name):
            asked = requests(prompts, pooling)
            pipeline.submit(0, asked[::2])
            pipeline.submit(1, asked[1::2])
            events = pipeline.until_ended(len(asked))
            assert_close(vectors(events, len(asked)), expected(directory, prompts, pooling))
