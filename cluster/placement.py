"""From a topology to what Ray must reserve for it: pure functions."""

from __future__ import annotations

from collections.abc import Mapping

from actors.pipeline.bundles import Resources, actor_bundles
from configs.schema import WindroseConfig

ROUTER_CPUS = 0.1
INGRESS_CPUS = 0.1


def resolve_device(config: WindroseConfig, resources: Mapping[str, float]) -> str:
    """`auto` means cuda where the cluster has any GPU, else cpu.

    `resources` are the cluster's totals as Ray names them.
    """
    if config.device != "auto":
        return config.device
    return "cuda" if resources.get("GPU", 0) >= 1 else "cpu"


def pipeline_bundles(config: WindroseConfig, device: str) -> list[Resources]:
    """One placement-group bundle for the router, then those of the actors: see actor_bundles.

    Raises:
        ValueError: an accelerator is asked for actors that there are none of.
    """
    return [{"CPU": ROUTER_CPUS}, *actor_bundles(config, device)]


def deployment_bundles(config: WindroseConfig, device: str, num_pipelines: int) -> list[Resources]:
    """What a deployment of so many pipelines asks of Ray: its ingresses and every bundle."""
    ingress: Resources = {"CPU": INGRESS_CPUS}
    return [ingress] * config.ingress_replicas + pipeline_bundles(config, device) * num_pipelines


def strategy(config: WindroseConfig) -> str:
    """Ray's name for how a pipeline's bundles are to lie on machines.

    Neither is strict: Ray's PACK takes the machine with most room for a bundle, fills it, and goes
    on to the next, so a pipeline stays on one machine where that one holds it; STRICT_PACK would
    wait for one that holds it all, also after a death, when what is left is room on two.
    """
    return "PACK" if config.placement == "pack" else "SPREAD"


def cpus_needed(config: WindroseConfig) -> float:
    """CPUs that Ray must be able to reserve for the whole deployment, at its largest."""
    bundles = deployment_bundles(config, "cpu", config.most_replicas)
    return sum(bundle["CPU"] for bundle in bundles)


def room_to_grow(config: WindroseConfig, num_experts: int) -> float:
    """CPUs with which every pipeline can be scaled to an expert actor per expert."""
    more = max(0, num_experts - config.expert_actors) if config.expert_actors else 0
    return config.most_replicas * more * config.cpus_per_actor
