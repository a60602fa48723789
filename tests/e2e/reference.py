"""transformers' own Mixtral as the oracle of what a server must answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from model.counter_random import uniforms

_NEAR_TIE = 1e-3


@dataclass(frozen=True)
class Expected:
    """Greedy tokens behind a prompt, and each one's log-probability."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class Reference:
    """Greedy decoding of one checkpoint in fp32."""

    def __init__(self, path: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self._longest: dict[tuple[int, ...], Expected] = {}

    def greedy(self, prompt: tuple[int, ...], max_tokens: int) -> Expected:
        """Continue one prompt alone, past any end-of-sequence token."""
        longest = self._longest.get(prompt)
        if longest is None or len(longest.token_ids) < max_tokens:
            longest = self._longest[prompt] = self._generate(prompt, max_tokens)
        return Expected(longest.token_ids[:max_tokens], longest.logprobs[:max_tokens])

    def would_say(self, prompt: tuple[int, ...], token_ids: tuple[int, ...]) -> bool:
        """Whether each of these is the greedy one behind those before it, near ties allowed."""
        with torch.inference_mode():
            logits = self._model(torch.tensor([prompt + token_ids])).logits[0].float()
        each = logits[len(prompt) - 1 : -1]
        chosen = each.gather(1, torch.tensor(token_ids)[:, None])[:, 0]
        return bool((chosen >= each.max(1).values - _NEAR_TIE).all())

    def margin(self, prompt: list[int], token_ids: list[int], seed: int, top_k: int) -> float:
        """The least distance, over these draws at temperature 1, to where another id is drawn.

        In probability, or in logits between the k-th best and the next; not above 0 where another
        id should have been drawn.
        """
        with torch.inference_mode():
            logits = self._model(torch.tensor([prompt + token_ids])).logits[0].double()
        each = logits[len(prompt) - 1 : -1]
        best = each.topk(top_k + 1).values
        kept = each.masked_fill(each < best[:, top_k - 1, None], float("-inf"))
        upper = kept.softmax(1).cumsum(1)
        lower = torch.cat((torch.zeros(len(token_ids), 1), upper[:, :-1]), dim=1)
        drawn = torch.tensor(token_ids)[:, None]
        positions = range(len(prompt), len(prompt) + len(token_ids))
        draws = torch.from_numpy(uniforms([seed] * len(token_ids), positions))[:, None]
        margins = (upper.gather(1, drawn) - draws, draws - lower.gather(1, drawn))
        return min(part.min().item() for part in (*margins, best[:, -2] - best[:, -1]))

    def _generate(self, prompt: tuple[int, ...], max_tokens: int) -> Expected:
        with torch.inference_mode():
            made = self._model.generate(
                torch.tensor([prompt]),
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        token_ids = tuple(made.sequences[0, len(prompt) :].tolist())
        logprobs = tuple(
            torch.log_softmax(logits[0].float(), -1)[token_id].item()
            for logits, token_id in zip(made.logits, token_ids, strict=True)
        )
        return Expected(token_ids, logprobs)
