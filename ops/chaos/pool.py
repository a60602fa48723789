"""The requests of a run: few enough that each has a twin from calm times, all of them different."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ops.bench.workload import FIRST_PROMPT_ID

# A draw may fall so close to the edge between two tokens that rounding decides, and rounding
# depends on what else is in the step. Few tokens have few edges. Seen without top_k: an edge at
# 0.76734874 and a draw of 0.76735016, in one answer of 64.
_TOP_K = 8
_LONGEST_PROMPT = 300  # tokens: over several blocks, and with others over one step's rows


@dataclass(frozen=True, slots=True)
class Request:
    """One completion of fixed length: greedy where `seed` is None, else drawn with that seed."""

    index: int
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int | None

    def body(self, model: str) -> bytes:
        """What is sent to /v1/completions."""
        drawn: dict[str, float] = {"temperature": 0}
        if self.seed is not None:
            drawn = {"temperature": 1, "top_k": _TOP_K, "seed": self.seed}
        fields = {
            "model": model,
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            **drawn,
        }
        return json.dumps(fields).encode()


def make_pool(
    count: int, max_tokens: int, vocab_size: int, max_model_len: int, seed: int
) -> tuple[Request, ...]:
    """`count` requests, every other one greedy, with prompts of 1 to 300 tokens, short ones more.

    Raises:
        ValueError: the vocabulary or the model's length leaves no room for prompts.
    """
    if vocab_size <= FIRST_PROMPT_ID:
        raise ValueError(f"--vocab-size {vocab_size}: prompts need ids from {FIRST_PROMPT_ID} up")
    longest = min(_LONGEST_PROMPT, max_model_len - max_tokens)
    if longest < 1:
        raise ValueError(
            f"--max-tokens {max_tokens}: the model's {max_model_len} tokens leave no prompt"
        )
    rng = random.Random(f"pool {seed}")
    pool = []
    for index in range(count):
        num_tokens = min(longest, int(math.exp(rng.uniform(0.0, math.log(longest + 1)))))
        prompt = tuple(rng.randrange(FIRST_PROMPT_ID, vocab_size) for _ in range(num_tokens))
        length = rng.randint(max(1, max_tokens // 4), max_tokens)  # so that ends are spread out
        pool.append(Request(index, prompt, length, seed=index if index % 2 else None))
    return tuple(pool)


def endless(pool: Sequence[Request], seed: int) -> Iterator[Request]:
    """The pool again and again, each time in another order."""
    rng = random.Random(f"order {seed}")
    while True:
        yield from rng.sample(pool, len(pool))
