"""What a request asks of the sampler: a plain value that any process can hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence is sampled and when it ends. Already validated and in range.

    `seed` is always set: the ingress draws one where the client gave none, so that a request
    that is run again elsewhere draws the same tokens.
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None  # None: none; n: the chosen token's and the n best
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    @property
    def greedy(self) -> bool:
        """Whether the best logit wins without a draw."""
        return self.temperature == 0.0

    @property
    def takes_best(self) -> bool:
        """Whether the best logit as it is wins, and nothing else is asked."""
        return (
            self.temperature == 0.0
            and self.logprobs is None
            and self.repetition_penalty == 1.0
            and not (self.presence_penalty or self.frequency_penalty or self.logit_bias)
        )


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, from the logits before any penalty or temperature."""

    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, logprob), best first
