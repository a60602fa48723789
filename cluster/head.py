"""What belongs on the cluster's head, and how Ray is told: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = "node:__internal_head__"  # a resource of the head alone; Ray gives it one
_A_LITTLE = 0.001


def on_head(nodes: Sequence[Mapping[str, Any]], cpus: float) -> dict[str, float]:
    """What a router and ingresses ask for so as to be put on the head; nothing if it has no room.

    `nodes` as ray.nodes() lists them; `cpus`: what all of them together need. Without its head the
    cluster is lost in any case. On a worker they would be lost with that worker: an ingress with
    its clients' connections, a router with the other machines' part of its pipeline. Nothing
    either where the head is alone: nodes that come later must be able to take what it cannot.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    heads = [node for node in alive if HEAD in node]
    fits = any(head.get("CPU", 0.0) >= cpus for head in heads)
    return {HEAD: _A_LITTLE} if fits and len(alive) > 1 else {}
