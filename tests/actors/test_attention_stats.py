"""An attention rank passes its engine's figures on to whoever asks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch

from actors.ranks.actor_stats import ActorIdentity, ActorStats
from actors.ranks.attention import AttentionRank
from actors.ranks.progress import Progress
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import greedy_requests, make_prompts, run_engine, tiny_plan

BASE = ActorStats(ActorIdentity("p", 0, "attention", 1, "here", "cpu"), "serving", None, 0, 0, 0)


async def stats_after_a_hit(directory: Path, caching: bool) -> ActorStats:
    plan = tiny_plan(directory, enable_prefix_caching=caching)
    rank = AttentionRank(plan, torch.device("cpu"), Progress(), lambda: True)
    assert rank.stats(BASE) == BASE
    rank.load()
    assert rank._built is not None
    for request in greedy_requests(make_prompts(512, [30]) * 2, 1):
        run_engine(rank._built.engine, [request])
    return rank.stats(BASE)


def test_prefix_cache_counters(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "model")
    on, off = (asyncio.run(stats_after_a_hit(directory, caching)) for caching in (True, False))
    assert (on.prefix_cache_queries, on.prefix_cache_hits, on.num_rows) == (60, 28, 32)
    assert (off.prefix_cache_queries, off.prefix_cache_hits, off.num_rows) == (0, 0, 60)
