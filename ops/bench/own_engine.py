"""Windrose's engine as a peer, and what every peer of the offline benchmark does."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Protocol

import torch

from actors.messages import GenerateRequest
from actors.model_plan import ModelPlan
from actors.ranks.engine_build import colocated_engine
from model.sampling_params import SamplingParams
from ops.bench.burst import Arrival, Burst


@dataclass(frozen=True, slots=True)
class Generated:
    """One burst's timing, and its tokens in the order of the prompts."""

    burst: Burst
    token_ids: list[list[int]]


class Peer(Protocol):
    """Something that continues a batch of prompts."""

    @property
    def name(self) -> str:
        """Its key in the results."""
        ...

    def generate(self, prompts: list[tuple[int, ...]], output_tokens: int) -> Generated:
        """Continue every prompt by exactly `output_tokens` greedy tokens."""
        ...


class OwnEngine:
    """The whole model in this process: topology (1, 0), no Ray, no HTTP, no tokenizer."""

    def __init__(self, plan: ModelPlan, name: str = "windrose") -> None:
        self.name = name
        self._engine = colocated_engine(plan, torch.device(plan.device)).engine

    @property
    def num_preemptions(self) -> int:
        """How often a sequence lost its KV blocks to others and was computed again, so far."""
        return self._engine.stats().num_preemptions

    def generate(self, prompts: list[tuple[int, ...]], output_tokens: int) -> Generated:
        """Submit all prompts at once and run the engine until the last has its tokens."""
        params = SamplingParams(output_tokens, seed=0, temperature=0.0, ignore_eos=True)
        arrivals: list[list[Arrival]] = [[] for _ in prompts]
        token_ids: list[list[int]] = [[] for _ in prompts]
        began_s = perf_counter()
        for index, prompt in enumerate(prompts):
            self._engine.add(GenerateRequest(str(index), "bench", prompt, params))
        pace = self._engine.scheduler.pace
        while self._engine.scheduler.has_work:
            plan = self._engine.plan_step()
            pace.begin(monotonic(), len(plan.decodes), plan.num_rows - len(plan.decodes))
            events = self._engine.run_step(plan)
            time_s = perf_counter() - began_s  # one for all: a step's tokens are known together
            for event in events:
                index = int(event.request_id)
                arrivals[index].append(Arrival(time_s, len(event.token_ids)))
                token_ids[index] += event.token_ids
        pace.begin(monotonic(), 0, 0)  # a rest
        assert all(len(ids) == output_tokens for ids in token_ids), "a stream ended early"
        return Generated(Burst(tuple(map(tuple, arrivals))), token_ids)
