"""Starting a pipeline's actors: the one place where a class becomes a Ray actor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.attention import AttentionActor
from actors.expert import ExpertActor
from actors.model_plan import ModelPlan
from actors.naming import actor_name, namespace_of


@dataclass(slots=True)
class Member:
    """The actor that has a rank now."""

    rank: int
    role: str
    name: str
    handle: Any  # Ray's handle of an AttentionActor or ExpertActor


class Spawner:
    """Starts the actor of a rank, as often as it takes, in the rank's own bundle of resources.

    Bundle 0 of the placement group is the router's; rank r has bundle r + 1.
    """

    def __init__(
        self,
        pipeline: str,
        plan: ModelPlan,
        group: PlacementGroup,
        application: str,
        cpus_per_actor: float,
    ) -> None:
        self._pipeline = pipeline
        self._plan = plan
        self._group = group
        self._namespace = namespace_of(application)
        self._cpus_per_actor = cpus_per_actor
        self._num_spawned = 0

    def spawn(self, rank: int) -> Member:
        """Start the actor of one rank; its name is new, since a dead one's may linger."""
        is_attention = rank < self._plan.num_attention
        role = "attention" if is_attention else "expert"
        name = actor_name(self._pipeline, role, rank, self._num_spawned)
        self._num_spawned += 1
        handle = (
            ray.remote(AttentionActor if is_attention else ExpertActor)
            .options(
                name=name,
                namespace=self._namespace,
                num_cpus=self._cpus_per_actor,
                num_gpus=1 if self._plan.device == "cuda" else 0,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=self._group, placement_group_bundle_index=rank + 1
                ),
            )
            .remote(self._pipeline, rank, self._plan)
        )
        return Member(rank, role, name, handle)
