"""transformers' own Mixtral as the oracle of what a server must answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

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
