"""Starting and ending a pipeline's actors: the one place where a class becomes a Ray actor."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.log_lines import LogSettings
from actors.model_plan import ModelPlan
from actors.naming import actor_name, namespace_of
from actors.pipeline.bundles import Kind, Needs, Resources, Role, covers, pick_bundle
from actors.ranks.rank_actor import AttentionActor, ExpertActor, SpareActor
from model.model_sizes import role_bytes

_CLASSES = {"attention": AttentionActor, "expert": ExpertActor, "spare": SpareActor}


def weights_bytes(plan: ModelPlan) -> dict[Kind, int]:
    """What an actor of each kind is going to read into this machine's memory; 0: hard to tell."""
    told = plan.device == "cpu" and plan.dtype == "bfloat16" and plan.model.bitsandbytes is None
    if not told:
        return {"attention": 0, "expert": 0, "spare": 0}
    held = role_bytes(plan.model, plan.dtype, plan.bits, copies_tied_head=True)
    if plan.num_expert:
        expert, with_experts = held.expert_actor(plan.num_expert), held.attention
    else:
        expert, with_experts = 0, held.attention + held.all_experts
    return {"attention": with_experts, "expert": expert, "spare": 0}


@dataclass(frozen=True, slots=True)
class Member:
    """One actor, the resources that it was given, and the roles that it can have there."""

    name: str
    handle: Any  # Ray's handle of a RankActor
    group: PlacementGroup
    bundle: int
    roles: frozenset[Role] = frozenset({"attention", "expert"})


class Spawner:
    """Starts actors, each in a bundle of resources of its own.

    Bundle 0 of the pipeline's placement group is the router's; the others are for actors, each of
    which gets one where its role may be. One for which there is none (after a scale-up) gets a
    placement group to itself, which asks for the same.
    """

    def __init__(
        self,
        pipeline: str,
        plan: ModelPlan,
        group: PlacementGroup,
        application: str,
        needs: Needs,
        bundles: Sequence[Resources],
        logs: LogSettings = LogSettings(),
    ) -> None:
        """`bundles`: of `group`, behind the router's."""
        self._logs = logs
        self._pipeline = pipeline
        self._device = plan.device
        self._packed_plan = pickle.dumps(plan)
        self._weights_bytes = weights_bytes(plan)
        self._group = group
        self._namespace = namespace_of(application)
        self._needs = needs
        self._bundles = dict(enumerate(bundles, start=1))
        self._free = dict(self._bundles)
        self._num_spawned = 0

    def spawn(self, kind: Kind, *, calm: bool) -> Member:
        """Start an actor; returns at once, with an actor that may wait for its resources.

        With `calm` it gets ready behind all else that its machine has to do. Its name is new,
        since a dead one's may linger.
        """
        name = actor_name(self._pipeline, kind, self._num_spawned)
        self._num_spawned += 1
        resources: Resources
        picked = pick_bundle(self._free, kind, self._needs)
        if picked is not None:
            group, bundle, resources = self._group, picked, self._free.pop(picked)
        else:
            resources = self._needs.of_kind(kind)
            group, bundle = placement_group([dict(resources)]), 0
        handle = (
            ray.remote(_CLASSES[kind])
            .options(
                name=name,
                namespace=self._namespace,
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0),
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=bundle
                ),
            )
            .remote(
                self._pipeline,
                self._device,
                self._packed_plan,
                calm,
                self._logs,
                0 if calm else self._weights_bytes[kind],
            )
        )
        return Member(name, handle, group, bundle, self._needs.roles(resources))

    def has_bundle(self, kind: Kind) -> bool:
        """Whether one of the pipeline's own is free for an actor of this kind."""
        return pick_bundle(self._free, kind, self._needs) is not None

    def shortage(self, count: int) -> str | None:
        """What the cluster lacks at present for so many more expert actors; or None."""
        wanted = self._needs.expert
        missing = count - sum(covers(bundle, wanted) for bundle in self._free.values())
        if missing <= 0:
            return None
        there = ray.available_resources()
        for name, amount in wanted.items():
            if there.get(name, 0.0) < missing * amount:
                return f"{missing * amount:g} {name} needed, {there.get(name, 0.0):g} free"
        return None

    def end(self, member: Member) -> None:
        """Kill an actor, dead or alive, and take its resources back."""
        ray.kill(member.handle)
        if member.group is self._group:
            self._free[member.bundle] = self._bundles[member.bundle]
        else:
            remove_placement_group(member.group)
