"""A sequence the model cannot continue ends alone; who shares its step is not touched."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from actors.messages import GenerateRequest, TokenEvent
from actors.ranks.engine import Engine
from actors.ranks.engine_build import colocated_engine
from model.sampling_params import SamplingParams
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import generate, load_reference, tiny_plan

POISON = 7


def request(name: str, prompt: tuple[int, ...]) -> GenerateRequest:
    params = SamplingParams(max_tokens=12, seed=0, temperature=0.0, ignore_eos=True)
    return GenerateRequest(name, "here", prompt, params)


def run(engine: Engine, requests: list[GenerateRequest]) -> dict[str, list[TokenEvent]]:
    """Each one's events."""
    events: dict[str, list[TokenEvent]] = {}
    engine.run(requests, lambda event: events.setdefault(event.request_id, []).append(event))
    return events


def poison(model: Path) -> None:
    """Have it give NaN for one token."""
    file = model / "model.safetensors"
    tensors = {key: value.clone() for key, value in load_file(file).items()}
    tensors["model.embed_tokens.weight"][POISON] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_request_without_finite_logits_is_aborted_alone(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", vocab=64)
    reference = load_reference(model)
    clean = (1, 20, 21, 22)
    expected = generate(reference, clean, 12).token_ids
    assert POISON not in expected
    poison(model)

    # Blocks for hardly more than two sequences: the clean ones get those of the poisoned.
    plan = tiny_plan(model, num_blocks=16, block_size=4, max_model_len=32)
    engine = colocated_engine(plan, torch.device("cpu")).engine
    requests = [request("first", clean), request("bad", (1, POISON, 9)), request("other", clean)]
    requests += [request(f"later{i}", clean) for i in range(4)]
    events = run(engine, requests)

    assert [event.finish_reason for event in events.pop("bad")] == ["abort"]
    assert len(events) == 6
    for name, own in events.items():
        assert tuple(t for event in own for t in event.token_ids) == tuple(expected), name
    engine.scheduler.check_integrity()


def test_nothing_that_is_not_finite_stays_in_the_cache(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", vocab=64)
    clean = (1, 20, 21, 22, 23, 24, 25, 26)
    expected = generate(load_reference(model), (*clean, 9), 12).token_ids
    poison(model)
    # Prompts read in several steps: blocks that hold NaN are offered before it is noticed.
    plan = tiny_plan(model, num_blocks=32, block_size=4, max_model_len=64, max_num_batched_tokens=8)
    engine = colocated_engine(plan, torch.device("cpu")).engine
    bad = (*clean, 9, POISON, *range(30, 45))
    for turn in range(3):
        requests = [request(f"clean{turn}", (*clean, 9)), request(f"bad{turn}", bad)]
        requests += [request(f"worse{turn}", (*bad, 9, 9)), request(f"clean{turn}b", (*clean, 9))]
        events = run(engine, requests)
        for one in requests:
            own = events[one.request_id]
            if "clean" in one.request_id:
                assert tuple(t for event in own for t in event.token_ids) == tuple(expected)
            else:
                assert [event.finish_reason for event in own] == ["abort"]
        engine.scheduler.check_integrity()
        assert engine.stats().kv_cache_usage == 0.0
        assert torch.isfinite(engine._cache._kv_LSJd).all()
    assert engine.stats().prefix_cache_hits > 0
