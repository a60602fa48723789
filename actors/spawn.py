"""Starting a pipeline's actors: the one place where a class becomes a Ray actor."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.attention import AttentionActor
from actors.expert import ExpertActor
from actors.model_plan import ModelPlan
from actors.naming import actor_name

Handle = Any  # Ray's actor handle: its methods are those of the class, each with .remote()


def spawn_pipeline(
    pipeline: str,
    plan: ModelPlan,
    group: PlacementGroup,
    namespace: str,
    cpus_per_actor: float,
) -> tuple[list[Handle], list[Handle]]:
    """Start all actors of a pipeline, attention ranks first; returns (attention, expert) handles.

    Bundle 0 of the placement group is the router's own; rank r gets bundle r + 1.
    """
    handles = []
    for rank in range(plan.num_attention + plan.num_expert):
        is_attention = rank < plan.num_attention
        actor_class = AttentionActor if is_attention else ExpertActor
        handles.append(
            ray.remote(actor_class)
            .options(
                name=actor_name(pipeline, "attention" if is_attention else "expert", rank),
                namespace=namespace,
                num_cpus=cpus_per_actor,
                num_gpus=1 if plan.device == "cuda" else 0,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=rank + 1
                ),
            )
            .remote(pipeline, rank, plan)
        )
    return handles[: plan.num_attention], handles[plan.num_attention :]
