"""What a benchmark asks for: bursts of equal requests with prompts nobody has seen before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FIRST_PROMPT_ID = 259  # below are control tokens and single bytes
WARM_UP_ROUND = -1


@dataclass(frozen=True, slots=True)
class Workload:
    """For each number of streams, `rounds` bursts: all requests at once, greedy, to full length.

    Raises:
        ValueError: the vocabulary leaves no ids to draw prompts from.
    """

    streams: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    rounds: int
    vocab_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.vocab_size <= FIRST_PROMPT_ID:
            raise ValueError(
                f"a vocabulary of {self.vocab_size}: prompts need ids from {FIRST_PROMPT_ID} up"
            )

    def prompts(self, streams: int, round_index: int) -> list[tuple[int, ...]]:
        """The prompts of one burst. Every burst has its own, so that no cache can know them."""
        rng = np.random.default_rng([self.seed, streams, round_index - WARM_UP_ROUND])
        shape = (streams, self.prompt_tokens)
        ids = rng.integers(FIRST_PROMPT_ID, self.vocab_size, shape)
        return [tuple(row) for row in ids.tolist()]

    @property
    def warm_up_tokens(self) -> int:
        """Output tokens of a warm-up request: enough to have met every shape of a step once."""
        return min(self.output_tokens, 16)
