"""One deployment for all tests of this folder: whatever dies or is changed, it mends.

They go in the order of their files. Metrics come first, since Ray's agent loses what a killed
ingress has counted in its last seconds; changes of the placement come after the deaths, since a
second holder of every expert would spare those the wait for a new one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.schema import WindroseConfig
from tests.actors.otlp_receiver import Receiver, receiving
from tests.e2e.deployments import Cluster
from tests.e2e.streams import LONGEST


@pytest.fixture(scope="package")
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@pytest.fixture(scope="package")
def url(cluster: Cluster, checkpoint: Path, receiver: Receiver) -> Iterator[str]:
    """Two attention actors, two expert actors, two ingresses; a hang is noticed within 3 s.

    Experts 0-3 are on rank 2, 4-7 on rank 3, and there is room for one more copy.
    """
    config = WindroseConfig(
        model=str(checkpoint),
        served_model_name="watched",  # Ray keeps the series of what is gone
        attention_actors=2,
        expert_actors=2,
        ingress_replicas=2,
        cpus_per_actor=0.1,
        threads_per_actor=1,
        max_model_len=LONGEST,
        peer_timeout_s=3.0,
        redundant_experts=1,
        otlp_endpoint=receiver.url,
    )
    with cluster.deployed(config, "watched") as url:
        yield url
