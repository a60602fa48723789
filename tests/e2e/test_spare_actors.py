"""Spares take the place of the dead, and the balancer changes the placement by itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.schema import WindroseConfig
from tests.e2e.deployments import Cluster
from tests.e2e.streams import Calm, Known, assert_undisturbed, experts_of, ranks_of, start

NUM_STREAMS = 16
MAX_TOKENS = 200
RANKS = [0, 1, 2]


@pytest.fixture(scope="module")
def url(cluster: Cluster, checkpoint: Path) -> Iterator[str]:
    """Experts 0-3 on rank 1, 4-7 on rank 2, room for one more copy; looks at the last 3 s."""
    config = WindroseConfig(
        model=str(checkpoint),
        expert_actors=2,
        spare_actors=1,
        cpus_per_actor=0.1,
        threads_per_actor=1,
        max_model_len=512,
        balance="auto",
        balance_window_s=3.0,
        balance_cooldown_s=1.0,
        balance_min_gain=0.001,
        redundant_experts=1,
    )
    with cluster.deployed(config, "spares") as url:
        yield url


@pytest.fixture(scope="module")
def known(url: str, calm: Calm) -> Known:
    return calm.known(url, NUM_STREAMS, MAX_TOKENS)


def spare_pid(url: str) -> int:
    """The pid of the spare, once it is there."""
    deadline_s = time.monotonic() + 60.0
    while time.monotonic() < deadline_s:
        for one in experts_of(url)["actors"]:
            if one["role"] == "spare":
                return int(one["pid"])
        time.sleep(0.05)  # nothing to wait on from outside
    raise TimeoutError("no spare was started")


@pytest.mark.parametrize("rank", RANKS)
def test_a_spare_becomes_whatever_rank_has_died(url: str, known: Known, rank: int) -> None:
    spare = spare_pid(url)
    (victim,) = [one["pid"] for one in ranks_of(url, RANKS) if one["rank"] == rank]
    streams = start(url, NUM_STREAMS, MAX_TOKENS)
    os.kill(victim, signal.SIGKILL)
    assert_undisturbed(streams, known)
    assert [one["pid"] for one in ranks_of(url, RANKS) if one["rank"] == rank] == [spare]
    assert spare_pid(url) != spare


def test_the_balancer_moves_experts_under_load_and_says_why(url: str, known: Known) -> None:
    deadline_s = time.monotonic() + 60.0
    applied: list[dict[str, Any]] = []
    while not applied and time.monotonic() < deadline_s:
        assert_undisturbed(start(url, NUM_STREAMS, MAX_TOKENS), known)
        balance = experts_of(url)["pipelines"][0]["balance"]
        applied = [one for one in balance["recent"] if one["outcome"] == "applied"]
    assert balance["mode"] == "auto"
    assert applied, balance
    assert applied[0]["gain"] > 0 and applied[0]["reason"]
    body = experts_of(url)
    holders = [len(ranks) for layer in body["placement"] for ranks in layer]
    assert min(holders) == 1 and max(holders) == 2, "no expert was replicated"
    assert_undisturbed(start(url, NUM_STREAMS, MAX_TOKENS), known)
