"""Experts inside the attention actors: no epochs to lose, so the router alone notices deaths."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.schema import WindroseConfig
from tests.e2e.deployments import Cluster
from tests.e2e.streams import (
    Calm,
    Known,
    assert_under_way,
    assert_undisturbed,
    experts_of,
    ranks_of,
    start,
)

NUM_STREAMS = 16
MAX_TOKENS = 300
RANKS = [0, 1]


@pytest.fixture(scope="module")
def url(cluster: Cluster, checkpoint: Path) -> Iterator[str]:
    """Two attention actors that hold everything; a hang is noticed within 3 s."""
    config = WindroseConfig(
        model=str(checkpoint),
        attention_actors=2,
        cpus_per_actor=0.1,
        threads_per_actor=1,
        max_model_len=512,
        peer_timeout_s=3.0,
    )
    with cluster.deployed(config, "colocated") as url:
        yield url


@pytest.fixture(scope="module")
def known(url: str, calm: Calm) -> Known:
    return calm.known(url, NUM_STREAMS, MAX_TOKENS)


@pytest.mark.parametrize(
    ("how", "cause"), [(signal.SIGKILL, "death"), (signal.SIGSTOP, "hang")], ids=["kill", "hang"]
)
def test_the_other_takes_over(url: str, known: Known, how: signal.Signals, cause: str) -> None:
    victim, other = (one["pid"] for one in ranks_of(url, RANKS))
    streams = start(url, NUM_STREAMS, MAX_TOKENS)
    assert_under_way(streams)
    os.kill(victim, how)
    assert_undisturbed(streams, known)
    first, second = (one["pid"] for one in ranks_of(url, RANKS))
    assert first != victim and second == other
    last = experts_of(url)["recoveries"][-1]
    assert (last["cause"], last["dead"]) == (cause, [["attention", 0]])
