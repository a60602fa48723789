"""A sequence the model cannot continue ends alone; who shares its step is not touched."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from actors.engine_build import colocated_engine
from actors.messages import GenerateRequest, TokenEvent
from model.sampling_params import SamplingParams
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import generate, load_reference, tiny_plan

POISON = 7


def request(name: str, prompt: tuple[int, ...]) -> GenerateRequest:
    params = SamplingParams(max_tokens=12, seed=0, temperature=0.0, ignore_eos=True)
    return GenerateRequest(name, "here", prompt, params)


def test_a_request_without_finite_logits_is_aborted_alone(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", vocab=64)
    reference = load_reference(model)
    clean = (1, 20, 21, 22)
    expected = generate(reference, clean, 12).token_ids
    assert POISON not in expected
    file = model / "model.safetensors"
    tensors = {key: value.clone() for key, value in load_file(file).items()}
    tensors["model.embed_tokens.weight"][POISON] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})

    # Blocks for hardly more than two sequences: the clean ones get those of the poisoned.
    plan = tiny_plan(model, num_blocks=16, block_size=4, max_model_len=32)
    engine = colocated_engine(plan, torch.device("cpu")).engine
    events: dict[str, list[TokenEvent]] = {}
    requests = [request("first", clean), request("bad", (1, POISON, 9)), request("other", clean)]
    requests += [request(f"later{i}", clean) for i in range(4)]
    engine.run(requests, lambda event: events.setdefault(event.request_id, []).append(event))

    assert [event.finish_reason for event in events.pop("bad")] == ["abort"]
    assert len(events) == 6
    for name, own in events.items():
        assert tuple(t for event in own for t in event.token_ids) == tuple(expected), name
    engine.scheduler.check_integrity()
