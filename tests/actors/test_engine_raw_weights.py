"""Raw Mistral weights give transformers' greedy tokens: colocated, and with experts apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.ranks.engine_build import colocated_engine
from tests.actors.threaded_pipeline import running
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import (
    Generated,
    assert_same,
    collect,
    generate,
    greedy_requests,
    load_reference,
    make_prompts,
    run_engine,
    tiny_plan,
)
from tests.raw_checkpoints import write_raw

CPU = torch.device("cpu")
MAX_TOKENS = 12
PROMPTS = make_prompts(512)[:6]


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Generated]]:
    return with_reference(make_checkpoint(tmp_path_factory.mktemp("mixtral")))


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Generated]]:
    directory = tmp_path_factory.mktemp("mistral")
    return with_reference(make_checkpoint(directory, experts=0, sliding_window=9, rope_theta=1e4))


def with_reference(directory: Path) -> tuple[Path, list[Generated]]:
    model = load_reference(directory)
    return directory, [generate(model, prompt, MAX_TOKENS) for prompt in PROMPTS]


def test_the_mixtral_release_with_experts_here_and_in_two_ranks_of_their_own(
    mixtral: tuple[Path, list[Generated]], tmp_path: Path
) -> None:
    source, reference = mixtral
    raw = write_raw(source, tmp_path, "release")
    requests = greedy_requests(PROMPTS, MAX_TOKENS)
    engine = colocated_engine(tiny_plan(raw), CPU).engine
    assert_same(run_engine(engine, requests), reference)
    with running(tiny_plan(raw, expert_actors=2)) as pipeline:
        pipeline.submit(0, requests)
        events = pipeline.until_ended(len(requests))
    assert_same(collect(events, requests), reference)


def test_experts_apart_in_one_file(mixtral: tuple[Path, list[Generated]], tmp_path: Path) -> None:
    source, reference = mixtral
    raw = write_raw(source, tmp_path, "pth")
    requests = greedy_requests(PROMPTS, MAX_TOKENS)
    with running(tiny_plan(raw, attention_actors=1, expert_actors=3)) as pipeline:
        pipeline.submit(0, requests)
        events = pipeline.until_ended(len(requests))
    assert_same(collect(events, requests), reference)


def test_a_dense_mistral_with_a_window(
    mistral: tuple[Path, list[Generated]], tmp_path: Path
) -> None:
    source, reference = mistral
    engine = colocated_engine(tiny_plan(write_raw(source, tmp_path, "safetensors")), CPU).engine
    assert_same(run_engine(engine, greedy_requests(PROMPTS, MAX_TOKENS)), reference)
