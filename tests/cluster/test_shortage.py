"""What is missing on made-up clusters, against a search through every placement."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.pipeline.bundles import Resources
from cluster.placement import deployment_bundles
from cluster.shortage import Node, shortage
from configs.schema import WindroseConfig

A, B = "accelerator_type:A", "accelerator_type:B"
H100 = "accelerator_type:H100"


def most_placed(bundles: list[Resources], nodes: list[Node]) -> int:
    """Every bundle on every machine, or on none: the most that any such placement holds."""
    best = 0
    for places in product(range(-1, len(nodes)), repeat=len(bundles)):
        for index, node in enumerate(nodes):
            there = [b for b, place in zip(bundles, places, strict=True) if place == index]
            names = {name for bundle in there for name in bundle}
            if any(
                round(sum(b.get(n, 0) for b in there) * 1e4) > round(node.resources.get(n, 0) * 1e4)
                for n in names
            ):
                break
        else:
            best = max(best, sum(place >= 0 for place in places))
    return best


def resources(cpus: list[float]) -> st.SearchStrategy[dict[str, float]]:
    """CPUs, perhaps GPUs, perhaps accelerators."""
    return st.builds(
        lambda cpu, gpu, kinds: {"CPU": cpu} | ({"GPU": gpu} if gpu else {}) | kinds,
        st.sampled_from(cpus),
        st.sampled_from([0.0, 1.0, 2.0]),
        st.sampled_from([{}, {A: 0.5}, {B: 0.5}, {A: 0.5, B: 0.5}]),
    )


BUNDLES = st.lists(resources([0.1, 0.35, 1.0]), min_size=1, max_size=5)
NODES = st.lists(resources([0.0, 0.4, 1.0, 1.1, 2.0]), max_size=3)


@given(BUNDLES, NODES)
@settings(max_examples=300, deadline=None)
def test_as_few_are_missing_as_in_the_best_of_all_placements(
    bundles: list[Resources], machines: list[Resources]
) -> None:
    nodes = [Node(str(index), machine) for index, machine in enumerate(machines)]
    short = shortage(bundles, nodes)
    missing = 0 if short is None else len(short.missing)
    assert missing == len(bundles) - most_placed(bundles, nodes)
    if short is not None:
        assert short.missing
        left = list(bundles)
        for bundle in short.missing:
            left.remove(bundle)  # each was asked for
        assert shortage(left, nodes) is None  # and without them the rest has a place


def mixtral(**settings: object) -> list[Resources]:
    config = WindroseConfig.model_validate(
        {"model": "m", "attention_actors": 1, "expert_actors": 4} | settings
    )
    return deployment_bundles(config, "cuda", config.first_replicas)


def gpu_node(name: str, gpus: float, **more: float) -> Node:
    return Node(name, {"CPU": 8.0, "GPU": gpus, "memory": 1e9, f"node:{name}": 1.0} | more)


def test_it_says_what_is_asked_what_there_is_and_what_is_missing() -> None:
    nodes = [Node("10.0.0.1", {"CPU": 4.0}), gpu_node("10.0.0.2", 2), gpu_node("10.0.0.3", 2)]
    assert str(shortage(mixtral(), nodes)) == (
        "asked: 2 x (CPU 0.1) + 5 x (CPU 1, GPU 1); there are 3 machines: 10.0.0.1 (CPU 4), "
        "10.0.0.2 and 10.0.0.3 (CPU 8, GPU 2); missing: 1 x (CPU 1, GPU 1) "
        "(GPU: 5 asked, 4 there)"
    )


def test_an_accelerator_that_no_machine_has_is_named() -> None:
    nodes = [gpu_node("10.0.0.2", 8, **{A: 1.0})]
    short = shortage(mixtral(expert_accelerator="H100", attention_accelerator="A"), nodes)
    assert short is not None
    assert str(short).endswith("missing: 4 x (CPU 1, GPU 1, H100) (no machine has H100)")
    assert "1 x (CPU 1, GPU 1, A) + 4 x (CPU 1, GPU 1, H100)" in str(short)


def test_enough_in_all_is_not_enough_where_no_machine_has_both() -> None:
    nodes = [Node("cpus", {"CPU": 64.0}), Node("gpus", {"CPU": 1.0, "GPU": 8.0})]
    short = shortage(mixtral(), nodes)
    assert short is not None and len(short.missing) == 4
    assert "asked," not in str(short)  # no sum is too small


def test_accelerators_keep_roles_apart() -> None:
    apart = mixtral(expert_accelerator="B", attention_accelerator="A")
    big, small = gpu_node("b", 4, **{B: 1.0}), gpu_node("a", 1, **{A: 1.0})
    assert shortage(apart, [big, small]) is None
    assert shortage(mixtral(), [big, small]) is None
    assert shortage(apart, [gpu_node("b", 8, **{B: 1.0})]) is not None


def test_all_pipelines_and_ingresses_count() -> None:
    assert shortage(mixtral(replicas=2), [gpu_node("a", 8), gpu_node("b", 2, CPU=2.5)]) is None
    short = shortage(mixtral(replicas=2), [gpu_node("a", 8), gpu_node("b", 1)])
    assert short is not None and [dict(one) for one in short.missing] == [{"CPU": 1, "GPU": 1}]
    short = shortage(mixtral(ingress_replicas=3), [gpu_node("a", 5, CPU=5.3)])
    assert short is not None and [dict(one) for one in short.missing] == [{"CPU": 0.1}]


def test_no_machine_at_all() -> None:
    assert "there are no machines; missing: 5 x (CPU 1, GPU 1) + 2 x (CPU 0.1)" in str(
        shortage(mixtral(), [])
    )


@pytest.mark.timeout(20)
def test_a_large_cluster_is_looked_through_quickly() -> None:
    bundles = mixtral(replicas=50, attention_actors=4, expert_actors=8, spare_actors=2,
                      attention_accelerator="A", expert_accelerator="B")  # fmt: skip
    nodes = [gpu_node(f"a{i}", 4, **{A: 1.0}) for i in range(50)]
    nodes += [gpu_node(f"b{i}", 8, CPU=9.0, **{B: 1.0}) for i in range(62)]
    short = shortage(bundles, nodes)
    assert short is not None and len(short.missing) == 50 * 10 - 62 * 8
    assert shortage(bundles, [*nodes, gpu_node("c", 4, **{B: 1.0, A: 1.0})]) is None
