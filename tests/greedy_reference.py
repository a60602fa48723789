"""What transformers generates from a checkpoint: the oracle of every engine and topology."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from actors.messages import GenerateRequest, TokenEvent
from actors.model_plan import ModelPlan, plan_model
from actors.ranks.engine import Engine
from configs.schema import WindroseConfig
from model.config import ModelConfig
from model.kv_size import block_bytes
from model.sampling_params import SamplingParams

# Single tokens, block and chunk sizes and their neighbours, and prompts many chunks long.
PROMPT_LENGTHS = (33, 1, 90, 2, 16, 3, 64, 5, 17, 8, 77, 24, 13, 55, 31, 40)
MAX_MODEL_LEN = 128


@dataclass(frozen=True)
class Generated:
    """One request's tokens and the log-probability of each."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str | None = None


def make_prompts(vocab: int, lengths: Iterable[int] = PROMPT_LENGTHS) -> list[tuple[int, ...]]:
    """Random prompts that begin with BOS; the same ones every time."""
    draw = random.Random(7)
    return [(1, *(draw.randrange(3, vocab) for _ in range(n - 1))) for n in lengths]


def load_reference(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint in transformers."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


@torch.inference_mode()
def generate(model: Any, prompt: tuple[int, ...], max_tokens: int) -> Generated:
    """One greedy continuation, alone in its batch."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = out.sequences[0, len(prompt) :].tolist()
    rows = torch.cat(out.logits).float().log_softmax(-1)
    return Generated(tuple(tokens), tuple(rows[range(len(tokens)), tokens].tolist()))


def tiny_plan(directory: Path, *, num_blocks: int | None = None, **settings: Any) -> ModelPlan:
    """A plan in which little fits: `num_blocks` KV blocks (default: more than is ever needed)."""
    settings.setdefault("max_model_len", MAX_MODEL_LEN)
    settings.setdefault("block_size", 4)
    settings.setdefault("dtype", "float32")
    shape = ModelConfig.from_dir(directory)
    per_block = block_bytes(shape, settings["block_size"], settings["dtype"])
    config = WindroseConfig(
        model=str(directory),
        kv_cache_memory_bytes=per_block * (num_blocks or 4096),
        threads_per_actor=1,
        **settings,
    )
    return plan_model(config, "cpu")


def greedy_requests(
    prompts: list[tuple[int, ...]], max_tokens: int, **params: Any
) -> list[GenerateRequest]:
    """One request per prompt, with ids r0, r1, ..., logprobs asked for."""
    sampling = SamplingParams(max_tokens, seed=0, temperature=0.0, logprobs=0)
    sampling = replace(sampling, **params)
    return [
        GenerateRequest(f"r{i}", "ingress", prompt, sampling) for i, prompt in enumerate(prompts)
    ]


def collect(events: Iterable[TokenEvent], requests: list[GenerateRequest]) -> list[Generated]:
    """What the events say of each request; each must have ended, once, with its last event."""
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    logprobs: dict[str, list[float]] = {request.request_id: [] for request in requests}
    ends: dict[str, str] = {}
    for event in events:
        assert event.request_id not in ends, f"{event} comes after the end"
        tokens[event.request_id] += event.token_ids
        logprobs[event.request_id] += [entry.logprob for entry in event.logprobs or ()]
        if event.finish_reason is not None:
            ends[event.request_id] = event.finish_reason
    return [
        Generated(tuple(tokens[r.request_id]), tuple(logprobs[r.request_id]), ends[r.request_id])
        for r in requests
    ]


def run_engine(engine: Engine, requests: list[GenerateRequest]) -> list[Generated]:
    """Run them together to their ends; afterwards no block is held."""
    events: list[TokenEvent] = []
    engine.run(requests, events.append)
    assert engine.stats().kv_cache_usage == 0.0
    return collect(events, requests)


def assert_same(got: list[Generated], want: list[Generated]) -> None:
    """Equal tokens, and logprobs within 1e-4."""
    for index, (mine, reference) in enumerate(zip(got, want, strict=True)):
        assert mine.token_ids == reference.token_ids, f"request {index}"
        assert len(mine.logprobs) == len(reference.logprobs), f"request {index}"
        for a, b in zip(mine.logprobs, reference.logprobs, strict=True):
            assert abs(a - b) < 1e-4, f"request {index}: {mine.logprobs} {reference.logprobs}"
