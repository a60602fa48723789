"""A scheduler and requests small enough to follow by hand, and what tests read off its plans."""

from __future__ import annotations

from typing import Any

from actors.messages import GenerateRequest, TokenEvent
from actors.scheduling.scheduler import ScheduledChunk, Scheduler, SchedulerLimits
from model.block_pool import BlockPool
from model.sampling_params import SamplingParams
from tests.actors.scheduler_steps import step

EOS = 2


def make_scheduler(
    num_blocks: int = 64,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 32,
    max_model_len: int = 64,
    block_size: int = 4,
    enable_prefix_caching: bool = False,  # test_prefix_cache.py is about what is shared
) -> Scheduler:
    limits = SchedulerLimits(
        max_num_seqs,
        max_num_batched_tokens,
        max_model_len,
        block_size,
        frozenset({EOS}),
        enable_prefix_caching,
    )
    return Scheduler(limits, BlockPool(num_blocks))


def make_request(
    request_id: str, prompt_len: int, outputs: tuple[int, ...] = (), **params: Any
) -> GenerateRequest:
    params = {"max_tokens": 50, "seed": 0, **params}
    prompt = tuple(range(100, 100 + prompt_len))
    return GenerateRequest(request_id, "ingress", prompt, SamplingParams(**params), outputs)


def rows(chunks: list[ScheduledChunk]) -> list[tuple[str, int, int, bool]]:
    return [(c.sequence.request_id, c.start, c.num_tokens, c.samples) for c in chunks]


def generate(scheduler: Scheduler, tokens: list[int]) -> list[TokenEvent]:
    return [event for token in tokens for event in step(scheduler, token)[1]]


def blocks_held(scheduler: Scheduler) -> int:
    return scheduler.pool.num_blocks - scheduler.pool.num_free
