"""What a benchmark asks for: requests of one shape with prompts nobody has seen before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FIRST_PROMPT_ID = 259  # below are control tokens and single bytes
WARM_UP_ROUND = -1

# Each is one token in most vocabularies, the space before it included.
_TEXT = (
    "the of and to in for is on that by this with you it not or be are from at as your all have "
    "new more an was we will home can us about if page my has search free but our one other do no "
    "time they site he up may what which their news out use any there see only so his when here"
)
_WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True)
class Traffic:
    """Greedy requests of one shape; a seed draws their prompts.

    Raises:
        ValueError: the vocabulary leaves no ids to draw prompts from.
    """

    prompt_tokens: int
    output_tokens: int
    vocab_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.vocab_size <= FIRST_PROMPT_ID:
            raise ValueError(
                f"a vocabulary of {self.vocab_size}: prompts need ids from {FIRST_PROMPT_ID} up"
            )

    def prompts(self, count: int, round_index: int) -> list[tuple[int, ...]]:
        """`count` prompts. Every round has its own, so that no cache can know them."""
        # The length is in the key: a short prompt must not begin a longer one.
        key = [self.seed, count, round_index - WARM_UP_ROUND, self.prompt_tokens]
        shape = (count, self.prompt_tokens)
        ids = np.random.default_rng(key).integers(FIRST_PROMPT_ID, self.vocab_size, shape)
        return [tuple(row) for row in ids.tolist()]

    @property
    def warm_up_tokens(self) -> int:
        """Output tokens of a warm-up request: enough to have met every shape of a step once."""
        return min(self.output_tokens, 16)


@dataclass(frozen=True, slots=True)
class Workload(Traffic):
    """For each number of streams, `rounds` bursts: all requests at once, to full length."""

    streams: tuple[int, ...]
    rounds: int


def as_text(prompt: Sequence[int]) -> str:
    """Another prompt for the same ids: a short word for each, so that about as many tokens."""
    return " ".join(_WORDS[token_id % len(_WORDS)] for token_id in prompt)
