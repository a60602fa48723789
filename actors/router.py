"""The router: owns one pipeline. A Serve replica.

It makes the actors, forms the communicators, decides which actor serves which expert, assigns
requests to attention actors and notices deaths. Rows never pass through it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from ray.util import get_current_placement_group
from torch.distributed import TCPStore

from actors.assignment import assign
from actors.messages import GenerateRequest
from actors.model_plan import ModelPlan, plan_model
from actors.naming import actor_name, namespace_of
from actors.process_group import Rendezvous, host_store
from actors.spawn import spawn_pipeline
from configs.schema import WindroseConfig
from model.placement import ExpertPlacement, split_evenly

_STOP_TIMEOUT_S = 15.0

logger = logging.getLogger(__name__)


class Router:
    """One pipeline, from its first actor to its last. Ready when its constructor returns."""

    def __init__(self, config: WindroseConfig, device: str) -> None:
        self._config = config
        self._plan: ModelPlan = plan_model(config, device)
        self._pipeline = uuid.uuid4().hex[:8]
        self._unfinished = [0] * config.attention_actors
        application = serve.get_replica_context().app_name
        group = get_current_placement_group()
        assert group is not None, "the router's deployment reserves its actors' resources"
        self._attention, self._experts = spawn_pipeline(
            self._pipeline, self._plan, group, namespace_of(application), config.cpus_per_actor
        )
        self._store: TCPStore | None = None
        # Serve calls this on its event loop; the start blocks for as long as loading takes.
        with ThreadPoolExecutor(1) as executor:
            executor.submit(self._start).result()

    def _start(self) -> None:
        """Load the weights, meet, serve. Actors without experts of their own form no group."""
        timeout_s = self._config.start_timeout_s
        if not self._experts:
            _wait([actor.load.remote() for actor in self._attention], timeout_s)
        else:
            placement = self._first_placement()
            _wait(
                [actor.load.remote() for actor in self._attention]
                + [actor.load.remote(placement) for actor in self._experts],
                timeout_s,
            )
            meeting = self._rendezvous()
            _wait(
                [actor.join.remote(meeting, placement) for actor in self._attention]
                + [actor.join.remote(meeting) for actor in self._experts],
                timeout_s,
            )
        _wait([actor.serve.remote() for actor in self._attention + self._experts], timeout_s)
        logger.info(
            "pipeline %s serves: %d attention, %d expert actors",
            self._pipeline,
            len(self._attention),
            len(self._experts),
        )

    def _first_placement(self) -> ExpertPlacement:
        ranks = range(len(self._attention), len(self._attention) + len(self._experts))
        return split_evenly(self._plan.model.num_layers, self._plan.model.num_experts, ranks)

    def _rendezvous(self) -> Rendezvous:
        host = ray.util.get_node_ip_address()
        self._store = host_store(host, self._config.peer_timeout_s)
        return Rendezvous(host, self._store.port, 1, self._config.peer_timeout_s)

    async def submit(self, requests: Sequence[GenerateRequest]) -> list[str]:
        """Assign requests that arrived together; returns the name of each one's attention actor.

        Raises:
            RayActorError: an attention actor is gone; none of the requests may be counted on.
        """
        chosen = assign(len(requests), self._unfinished)
        batches: list[list[GenerateRequest]] = [[] for _ in self._attention]
        for request, index in zip(requests, chosen, strict=True):
            batches[index].append(request)
        # With experts apart the attention actors step together: those without new work are
        # told too, so that a sleeping one joins the step.
        told = [i for i, batch in enumerate(batches) if batch or self._experts]
        counts = await asyncio.gather(*(self._attention[i].submit.remote(batches[i]) for i in told))
        for index, count in zip(told, counts, strict=True):
            self._unfinished[index] = count
        return [actor_name(self._pipeline, "attention", index) for index in chosen]

    async def check_health(self) -> None:
        """Serve asks this regularly; an error makes it replace the whole pipeline.

        Raises:
            RuntimeError: an actor's loop has failed.
            RayActorError: an actor is dead.
        """
        actors = self._attention + self._experts
        stats = await asyncio.gather(*(actor.stats.remote() for actor in actors))
        for one in stats:
            if one.identity.role == "attention":
                self._unfinished[one.identity.rank] = one.num_running + one.num_waiting
            if one.failure is not None:
                raise RuntimeError(
                    f"{one.identity.role} rank {one.identity.rank} failed: {one.failure}"
                )

    async def __del__(self) -> None:
        """Serve calls this when the replica goes: end the loops, then the processes."""
        stops = [actor.stop.remote() for actor in getattr(self, "_attention", [])]
        if stops:
            await asyncio.wait(
                [asyncio.ensure_future(_quietly(s)) for s in stops], timeout=_STOP_TIMEOUT_S
            )
        for actor in getattr(self, "_attention", []) + getattr(self, "_experts", []):
            ray.kill(actor)


def _wait(refs: Sequence[Any], timeout_s: float) -> None:
    ray.get(list(refs), timeout=timeout_s)


async def _quietly(ref: Any) -> None:
    try:
        await ref
    except ray.exceptions.RayError as error:
        logger.info("an actor was gone before it was told to stop: %s", error)
