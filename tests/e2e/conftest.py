"""One Ray and one Serve for all end-to-end tests, which go before the other folders' tests begin.

Each deployment is an application on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.e2e import namespaces
from tests.e2e.deployments import Cluster
from tests.e2e.launched import Launched, launched, timed
from tests.e2e.reference import Reference
from tests.e2e.streams import LONGEST, Calm

VOCAB = 512
_FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _FOLDER in item.path.parents:
            item.add_marker(pytest.mark.alone)


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    running = Cluster.start()
    yield running
    running.stop()


@pytest.fixture(scope="package")
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
        max_positions=LONGEST,
    )


@pytest.fixture(scope="package")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


@pytest.fixture(scope="package")
def calm(reference: Reference) -> Calm:
    """One for all deployments of that checkpoint."""
    return Calm(reference)


@pytest.fixture(scope="package")
def launched_by_ray_up(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path
) -> Iterator[Launched]:
    if (why := namespaces.obstacle()) is not None:
        pytest.skip(why)
    with launched(tmp_path_factory.mktemp("ray-up") / "lan", checkpoint) as machines:
        with timed("ray up"):
            machines.up()
        yield machines


@pytest.fixture(scope="package")
def launched_site(launched_by_ray_up: Launched, checkpoint: Path) -> Launched:
    """It serves (1, 2): each worker has one of the expert actors."""
    flags = ("--expert-actors", "2", "--threads-per-actor", "1", "--dtype", "float32")
    limits = ("--max-model-len", "512", "--peer-timeout", "3")
    launched_by_ray_up.tenant("comes")
    with timed("windrose serve"):
        launched_by_ray_up.serve(checkpoint, *flags, *limits)
    launched_by_ray_up.tenant("goes")
    return launched_by_ray_up
