"""Routers and ingresses belong on the head, where it can hold them."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.head import HEAD, on_head


def node(cpus: float, *, head: bool = False, alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": cpus} if cpus else {}
    return {"Alive": alive, "Resources": resources | ({HEAD: 1.0} if head else {})}


@pytest.mark.parametrize(
    ("nodes", "there"),
    [
        ([node(1, head=True), node(8), node(8)], True),
        ([node(8), node(0.3, head=True)], True),
        ([node(8), node(0.2, head=True)], False),
        ([node(8), node(0, head=True)], False),  # as KubeRay has it: nothing runs on the head
        ([node(8), node(8, head=True, alive=False)], False),
        ([node(8, head=True)], False),  # alone: machines that come later must be able to help
        ([node(8), node(8, alive=False)], False),
        ([node(8)], False),
        ([], False),
    ],
)
def test_on_the_head_where_it_has_room(nodes: list[dict[str, Any]], there: bool) -> None:
    asked = on_head(nodes, 0.3)
    assert set(asked) == ({HEAD} if there else set())
    # A thousand of them must fit: Ray gives the head 1, and counts in ten-thousandths.
    assert all(0.0001 <= amount <= 0.001 for amount in asked.values())
