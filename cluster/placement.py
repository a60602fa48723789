"""From a topology to what Ray must reserve for it: pure functions."""

from __future__ import annotations

from collections.abc import Mapping

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


def pipeline_bundles(config: WindroseConfig, device: str) -> list[dict[str, float]]:
    """One placement-group bundle for the router, then one for every rank and every spare."""
    actor = {"CPU": config.cpus_per_actor}
    if device == "cuda":
        actor["GPU"] = 1.0
    return [{"CPU": ROUTER_CPUS}] + [dict(actor) for _ in range(_num_actors(config))]


def cpus_needed(config: WindroseConfig) -> float:
    """CPUs that Ray must be able to reserve for the whole deployment."""
    pipeline = ROUTER_CPUS + _num_actors(config) * config.cpus_per_actor
    return config.most_replicas * pipeline + config.ingress_replicas * INGRESS_CPUS


def room_to_grow(config: WindroseConfig, num_experts: int) -> float:
    """CPUs with which every pipeline can be scaled to an expert actor per expert."""
    more = max(0, num_experts - config.expert_actors) if config.expert_actors else 0
    return config.most_replicas * more * config.cpus_per_actor


def _num_actors(config: WindroseConfig) -> int:
    return config.attention_actors + config.expert_actors + config.spare_actors
