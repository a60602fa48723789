"""transformers' generate() on the same prompts: a static batch, in this process.

Shape suffixes: B sequences, S prompt tokens.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ops.bench.burst import Arrival, Burst
from ops.bench.own_engine import Generated


class TransformersPeer:
    """One checkpoint, loaded once. `experts` names transformers' way to run them."""

    name = "transformers"

    def __init__(self, model_dir: str, dtype: torch.dtype, experts: str) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).eval()
        self._model.set_experts_implementation(experts)

    def generate(self, prompts: list[tuple[int, ...]], output_tokens: int) -> Generated:
        """Continue all prompts, of equal length, by exactly `output_tokens` greedy tokens."""
        ids_BS = torch.tensor(prompts)
        clock = _StepClock()
        began_s = perf_counter()
        with torch.inference_mode():
            # Without an EOS there is none to suppress: min_new_tokens would cost and do nothing.
            made: torch.Tensor = self._model.generate(
                ids_BS,
                attention_mask=torch.ones_like(ids_BS),
                max_new_tokens=output_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([clock]),
            )
        token_ids = made[:, ids_BS.shape[1] :].tolist()
        assert all(len(row) == output_tokens for row in token_ids), "generate() stopped early"
        arrivals = tuple(Arrival(time_s - began_s, 1) for time_s in clock.times_s)
        return Generated(Burst((arrivals,) * len(prompts)), token_ids)


class _StepClock(StoppingCriteria):
    """Never stops anything: generate() asks it once a step, when the tokens are known."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        self.times_s.append(perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
