"""One Ray and one Serve for all end-to-end tests; each deployment is an application on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.e2e.deployments import Cluster
from tests.e2e.reference import Reference

VOCAB = 512


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    running = Cluster.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mixtral in fp32: 3 layers, 8 experts, top-2, grouped-query attention."""
    return make_checkpoint(
        tmp_path_factory.mktemp("e2e") / "random-mixtral",
        hidden=64,
        layers=3,
        heads=4,
        kv_heads=2,
        ffn=96,
        experts=8,
        top_k=2,
        vocab=VOCAB,
        dtype="float32",
    )


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)
