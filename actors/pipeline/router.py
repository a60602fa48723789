"""The router: owns one pipeline. A Serve replica.

It makes the actors, forms the communicators, decides which actor serves which expert, assigns
requests to attention actors, notices deaths and mends them. Rows never pass through it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict

from ray import serve
from ray.util import get_current_placement_group

from actors.hub import HubModel
from actors.log_lines import LogSettings, about
from actors.messages import GenerateRequest
from actors.metrics.metrics_text import Gauges
from actors.metrics.ray_metrics import RayExport, keep_exporting
from actors.metrics.tally import Counts, Tally
from actors.model_plan import plan_model
from actors.naming import pipeline_name
from actors.pipeline.live_placement import Outcome
from actors.pipeline.pipeline import Pipeline
from actors.pipeline.pipeline_tally import PipelineView
from actors.placement.placement_messages import PlacementChange
from actors.ranks import rendezvous
from configs.schema import WindroseConfig
from model.fingerprint import commit_fingerprint, weights_fingerprint

logger = logging.getLogger(__name__)


class Router:
    """One pipeline, from its first actor to its last. Ready when its constructor returns."""

    async def __init__(  # type: ignore[misc]  # Serve awaits a constructor that is a coroutine
        self, config: WindroseConfig, device: str, hub: HubModel | None
    ) -> None:
        logs = LogSettings.of(config)
        logs.configure("router")
        plan = await asyncio.to_thread(plan_model, config, device, hub, headers=False)
        group = get_current_placement_group()
        assert group is not None, "the router's deployment reserves its actors' resources"
        if plan.num_expert:
            rendezvous.prepare()  # while the actors start
        precision = f"{plan.dtype}/{plan.bits}"
        if hub is None:
            weights = await asyncio.to_thread(weights_fingerprint, config.model, precision)
        else:
            weights = commit_fingerprint(hub.name, hub.commit, precision)
        replica = serve.get_replica_context().replica_id.unique_id
        name = pipeline_name(weights, replica)
        logs.configure("router", pipeline=name)
        self._drain_timeout_s = config.drain_timeout_s
        self._pipeline = Pipeline(name, config, plan, group, serve.get_replica_context().app_name)
        await self._pipeline.start()
        self._event_loop = asyncio.get_running_loop()
        self._supervisor = self._event_loop.create_task(self._pipeline.supervise())
        self._exporting = keep_exporting(RayExport(config.model_name), self._measured)
        logger.info(
            "pipeline %s serves: %d attention, %d expert actors",
            name,
            plan.num_attention,
            plan.num_expert,
            extra=about("pipeline_started", attention=plan.num_attention, expert=plan.num_expert),
        )

    async def submit(
        self, requests: Sequence[GenerateRequest], pipeline: str | None = None
    ) -> list[str | None]:
        """Assign requests that arrived together; returns the name of each one's attention actor.

        None stands for a request whose actor is gone, or that is not for this pipeline: it is to
        be submitted again. `pipeline` is the one that was meant, for `request_router.py`.
        """
        return await self._pipeline.submit(requests)

    async def change(self, change: PlacementChange) -> Outcome:
        """Change who holds which expert; returns when it is in force, or why it is not."""
        return await self._pipeline.change(change)

    async def view(self, heard: Tally, fresh: bool) -> PipelineView:
        """The pipeline and what it and others have counted; takes in what the asker has heard."""
        return await self._pipeline.view(heard, fresh=fresh)

    def _measured(self) -> tuple[Counts, Gauges]:
        """For another thread: read on the event loop, whose the pipeline is."""

        async def measured() -> tuple[Counts, Gauges]:
            return self._pipeline.measured()

        return asyncio.run_coroutine_threadsafe(measured(), self._event_loop).result()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The load, for Serve, which asks while the number of pipelines follows it."""
        return asdict(self._pipeline.load())

    async def check_health(self) -> None:
        """Serve asks this regularly; an error makes it replace the whole pipeline.

        Raises:
            RuntimeError: the pipeline could not be mended.
        """
        if self._supervisor.done():
            await self._supervisor

    async def __del__(self) -> None:
        """Serve calls this when the replica goes, and no new requests come.

        Those that are here finish; then the loops end, then the processes.
        """
        if hasattr(self, "_supervisor"):
            if not self._supervisor.done():
                await self._pipeline.drain(self._drain_timeout_s)
            self._supervisor.cancel()
        if hasattr(self, "_exporting"):
            self._exporting.set()
        if hasattr(self, "_pipeline"):
            await self._pipeline.stop()
            logger.info("the pipeline has ended", extra=about("pipeline_ended"))
