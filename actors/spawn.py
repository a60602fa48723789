"""Starting and ending a pipeline's actors: the one place where a class becomes a Ray actor."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.model_plan import ModelPlan
from actors.naming import actor_name, namespace_of
from actors.rank_actor import AttentionActor, ExpertActor, SpareActor

Kind = Literal["attention", "expert", "spare"]

_CLASSES = {"attention": AttentionActor, "expert": ExpertActor, "spare": SpareActor}


@dataclass(frozen=True, slots=True)
class Member:
    """One actor, and the resources that it was given."""

    name: str
    handle: Any  # Ray's handle of a RankActor
    group: PlacementGroup
    bundle: int


class Spawner:
    """Starts actors, each in a bundle of resources of its own.

    Bundle 0 of the pipeline's placement group is the router's; the others are for actors. One
    more than there are bundles (after a scale-up) gets a placement group to itself.
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
        self._device = plan.device
        self._packed_plan = pickle.dumps(plan)
        self._group = group
        self._namespace = namespace_of(application)
        self._resources = {"CPU": cpus_per_actor}
        if plan.device == "cuda":
            self._resources["GPU"] = 1.0
        self._free = list(range(1, group.bundle_count))
        self._num_spawned = 0

    def spawn(self, kind: Kind, *, calm: bool) -> Member:
        """Start an actor; returns at once, with an actor that may wait for its resources.

        With `calm` it gets ready behind all else that its machine has to do. Its name is new,
        since a dead one's may linger.
        """
        name = actor_name(self._pipeline, kind, self._num_spawned)
        self._num_spawned += 1
        if self._free:
            group, bundle = self._group, self._free.pop(0)
        else:
            group, bundle = placement_group([self._resources]), 0
        handle = (
            ray.remote(_CLASSES[kind])
            .options(
                name=name,
                namespace=self._namespace,
                num_cpus=self._resources["CPU"],
                num_gpus=self._resources.get("GPU", 0),
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=bundle
                ),
            )
            .remote(self._pipeline, self._device, self._packed_plan, calm)
        )
        return Member(name, handle, group, bundle)

    def shortage(self, count: int) -> str | None:
        """What the cluster lacks at present for so many more actors, in one phrase; or None."""
        missing = count - len(self._free)
        if missing <= 0:
            return None
        there = ray.available_resources()
        for name, amount in self._resources.items():
            if there.get(name, 0.0) < missing * amount:
                return f"{missing * amount:g} {name} needed, {there.get(name, 0.0):g} free"
        return None

    def end(self, member: Member) -> None:
        """Kill an actor, dead or alive, and take its resources back."""
        ray.kill(member.handle)
        if member.group is self._group:
            self._free.append(member.bundle)
        else:
            remove_placement_group(member.group)
