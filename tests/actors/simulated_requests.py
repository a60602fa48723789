"""Requests at random, and what each answers alone: the fake model run on plain lists."""

from __future__ import annotations

import random
from collections.abc import Sequence

from actors.messages import GenerateRequest
from actors.scheduling.scheduler import SchedulerLimits
from model.sampling_params import SamplingParams

VOCAB, EOS = 13, 0
Answer = tuple[list[int], str, int | None]


def next_token(tokens: Sequence[int], seed: int) -> int:
    return (sum((i + 3) * (t + 1) for i, t in enumerate(tokens)) * 7 + seed) % VOCAB


def alone(request: GenerateRequest, max_model_len: int) -> Answer:
    """What the request answers with the machine to itself."""
    params, outputs = request.params, [*request.output_token_ids]
    while True:
        token = next_token([*request.prompt_token_ids, *outputs], params.seed)
        outputs.append(token)
        if token == EOS and not params.ignore_eos:
            return outputs, "stop", None
        if token in params.stop_token_ids:
            return outputs, "stop", token
        if len(outputs) == params.max_tokens:
            return outputs, "length", None
        if len(request.prompt_token_ids) + len(outputs) == max_model_len:
            return outputs, "length", None


def make_limits(
    seqs: int,
    budget: int,
    model_len: int,
    block_size: int,
    caching: bool,
    window: int | None = None,
) -> SchedulerLimits:
    return SchedulerLimits(
        seqs, budget, model_len, block_size, frozenset({EOS}), caching, sliding_window=window
    )


def random_request(
    rng: random.Random, request_id: str, max_model_len: int, now_s: float = 0.0
) -> GenerateRequest:
    """Half of the prompts begin as others do, for a while or to their end.

    Some took long to come here, and some are more or less important than most.
    """
    length = rng.randint(1, max_model_len - 1)
    known = random.Random(rng.randrange(3))
    num_known = rng.choice([0, rng.randint(0, length), length])
    prompt = [known.randrange(1, VOCAB) for _ in range(num_known)]
    prompt += [rng.randrange(1, VOCAB) for _ in range(length - num_known)]
    return GenerateRequest(
        request_id=request_id,
        ingress_id="ingress",
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(
            max_tokens=rng.randint(1, max_model_len),
            seed=rng.randrange(1000),
            ignore_eos=rng.random() < 0.6,
            stop_token_ids=tuple(rng.sample(range(VOCAB), rng.choice([0, 0, 0, 1, 2]))),
        ),
        arrival_s=now_s - rng.choice([0.0, 0.0, 0.1, 3.0]),
        priority=rng.choice([0, 0, 0, -1, 3]),
    )
