"""A dead actor takes its pipeline down; the next one goes on with what clients were reading."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import pytest

from configs.schema import WindroseConfig
from tests.e2e.deployments import Cluster
from tests.e2e.reference import Reference
from tests.e2e.test_serve_command import Stream

MAX_TOKENS = 800


@pytest.mark.parametrize("role", ["expert", "attention"])
def test_streams_survive_the_death_of_an_actor(
    cluster: Cluster, checkpoint: Path, reference: Reference, role: str
) -> None:
    config = WindroseConfig(
        model=str(checkpoint),
        attention_actors=1,
        expert_actors=2,
        cpus_per_actor=0.1,
        threads_per_actor=1,
        max_model_len=1024,
    )
    with cluster.deployed(config, f"death-{role}") as url:
        streams = [Stream(url, [1, 40 + i, 9], MAX_TOKENS) for i in range(4)]
        for stream in streams:
            stream.start()
        for stream in streams:
            assert stream.started.wait(60.0)
        actors = httpx.get(f"{url}/v1/experts").json()["actors"]
        victim = next(actor for actor in actors if actor["role"] == role)
        os.kill(victim["pid"], signal.SIGKILL)
        assert not any(stream.done for stream in streams), "they ended before the kill"
        for stream in streams:
            stream.join(120.0)
            assert stream.done
            expected = reference.greedy(tuple(stream.prompt), MAX_TOKENS)
            assert tuple(stream.token_ids) == expected.token_ids
        after = httpx.get(f"{url}/v1/experts").json()["actors"]
        assert victim["pid"] not in {actor["pid"] for actor in after}
