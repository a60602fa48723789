"""Roles on the machines of their accelerators: several raylets on this one stand for machines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from actors.model_plan import plan_model
from actors.pipeline.bundles import Kind, Needs, actor_bundles
from cluster.placement import pipeline_bundles, strategy
from configs.schema import WindroseConfig
from tests.e2e.deployments import Cluster

TIMEOUT_S = 60.0


def alive() -> dict[str, dict[str, float]]:
    """The resources of every machine, by its id in Ray."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


@pytest.fixture(scope="module")
def machine_of(cluster: Cluster) -> Iterator[dict[str, str]]:
    """Machines with accelerators A (1 CPU) and B (3 CPUs) beside the cluster's own: their ids."""
    import ray
    from ray.cluster_utils import Cluster as Raylets

    raylets = Raylets()
    raylets.head_node = ray._private.worker.global_worker.node
    raylets.redis_address = None
    before = set(alive())
    assert cluster.address == raylets.address
    for num_cpus, name in ((1, "A"), (3, "B")):
        resources = {f"accelerator_type:{name}": 1}
        raylets.add_node(num_cpus=num_cpus, resources=resources, object_store_memory=80_000_000)
    try:
        yield {
            name.removeprefix("accelerator_type:"): node_id
            for node_id, resources in alive().items()
            for name in resources
            if name.startswith("accelerator_type:")
        }
    finally:
        for node in list(raylets.worker_nodes):
            raylets.remove_node(node)
    deadline_s = time.monotonic() + TIMEOUT_S
    while set(alive()) != before:  # later tests count machines
        assert time.monotonic() < deadline_s, "Ray did not notice that they have gone"
        time.sleep(0.05)


def wait_until_free() -> None:
    """What was removed a moment ago still takes its CPUs in the eyes of who places the next."""
    from ray._private.state import available_resources_per_node

    deadline_s = time.monotonic() + TIMEOUT_S
    while any(
        available_resources_per_node().get(node_id, {}).get("CPU") != resources.get("CPU")
        for node_id, resources in alive().items()
    ):
        assert time.monotonic() < deadline_s, "an earlier test's resources were never given back"
        time.sleep(0.05)


@contextmanager
def placed(config: WindroseConfig) -> Iterator[Any]:
    """A pipeline's placement group, as Serve makes it, on machines that are otherwise empty."""
    import ray
    from ray.util import placement_group, remove_placement_group

    wait_until_free()
    bundles = [dict(bundle) for bundle in pipeline_bundles(config, "cpu")]
    group = placement_group(bundles, strategy(config))
    try:
        ray.get(group.ready(), timeout=TIMEOUT_S)
        yield group
    finally:
        remove_placement_group(group)


def machines(group: Any) -> dict[int, str]:
    """Where its bundles are."""
    from ray.util import placement_group_table

    return cast(dict[int, str], placement_group_table(group)["bundles_to_node_id"])


def test_actors_lie_on_their_accelerators_also_the_next_of_their_role(
    machine_of: dict[str, str], checkpoint: Path
) -> None:
    import ray
    from ray._private.state import actors

    from actors.pipeline.spawn import Spawner

    config = WindroseConfig(
        model=str(checkpoint), expert_actors=2, spare_actors=1, max_model_len=64,
        attention_accelerator="A", expert_accelerator="B",
    )  # fmt: skip
    with placed(config) as group:
        spawner = Spawner(
            "placement", plan_model(config, "cpu"), group, "placement",
            Needs.of(config, "cpu"), actor_bundles(config, "cpu"),
        )  # fmt: skip
        # In the wrong order, so that it takes more than handing bundles out one after the other.
        kinds: list[Kind] = ["spare", "expert", "attention", "expert"]
        members = [spawner.spawn(kind, calm=True) for kind in kinds]

        def node_of(index: int) -> str:
            handle = members[index].handle
            ray.get(handle.stats.remote(), timeout=TIMEOUT_S)
            return str(actors(handle._actor_id.hex())["Address"]["NodeID"])

        a, b = machine_of["A"], machine_of["B"]
        assert [node_of(index) for index in range(4)] == [b, b, a, b]
        assert [sorted(one.roles) for one in members] == [
            ["expert"], ["expert"], ["attention"], ["expert"]
        ]  # fmt: skip
        for index in (1, 2):
            spawner.end(members[index])
        members[1:3] = [spawner.spawn("attention", calm=True), spawner.spawn("expert", calm=True)]
        assert [node_of(1), node_of(2)] == [a, b]
        for member in members:
            spawner.end(member)


@pytest.mark.usefixtures("machine_of")
def test_a_pipeline_is_packed_on_one_machine_or_spread_over_all() -> None:
    settings = {"model": "m", "expert_actors": 2, "cpus_per_actor": 0.5}
    with placed(WindroseConfig.model_validate(settings)) as group:
        assert len(set(machines(group).values())) == 1
    with placed(WindroseConfig.model_validate(settings | {"placement": "spread"})) as group:
        assert len(set(machines(group).values())) == 3
