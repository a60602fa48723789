"""One pipeline's actors: started together, watched, and replaced one by one when they die.

While an actor is replaced the others keep their weights, their KV cache and their requests. One
task, the supervisor, carries out all changes, one after another: recoveries, ranks that join, and
changes of the placement. A loss interrupts whatever else is under way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup

from actors.log_lines import LogSettings, about
from actors.messages import GenerateRequest
from actors.metrics.metrics_text import Gauges
from actors.metrics.tally import Counts, Tally
from actors.model_plan import ModelPlan
from actors.patience import forget, within
from actors.pipeline.balance_watch import BalanceWatch
from actors.pipeline.bundles import Needs, actor_bundles
from actors.pipeline.crew import Crew
from actors.pipeline.groups import Groups
from actors.pipeline.intake import Intake
from actors.pipeline.live_placement import LivePlacement, Outcome
from actors.pipeline.mending import Mender
from actors.pipeline.pipeline_load import PipelineLoad, RecentLoads
from actors.pipeline.pipeline_report import PipelineReport
from actors.pipeline.pipeline_tally import PipelineTally, PipelineView
from actors.pipeline.pulse import Pulse
from actors.pipeline.recovery import describe
from actors.pipeline.spawn import Spawner
from actors.placement.placement_messages import ChangeRefused, PlacementChange
from actors.ranks.actor_stats import ActorIdentity, ActorStats
from configs.schema import WindroseConfig
from model.placement import split_evenly

_MAX_FIRST_TRIES = 3  # of an actor, before the pipeline has ever served
_STOP_TIMEOUT_S = 15.0
_CANCEL_AGAIN_S = 0.01

logger = logging.getLogger(__name__)


class Pipeline:
    """Owns the actors; every method runs on the router's event loop."""

    def __init__(
        self, name: str, config: WindroseConfig, plan: ModelPlan, group: PlacementGroup, app: str
    ) -> None:
        self._config = config
        self._plan = plan
        host = ray.util.get_node_ip_address()
        self._identity = ActorIdentity(name, -1, "router", os.getpid(), host, "cpu")
        needs, bundles = Needs.of(config, plan.device), actor_bundles(config, plan.device)
        spawner = Spawner(name, plan, group, app, needs, bundles, LogSettings.of(config))
        self._crew = crew = Crew(
            spawner, plan.num_attention, config.spare_actors, config.start_timeout_s, self._share
        )
        self._groups = Groups(host, plan.num_attention, config.peer_timeout_s, config.cpu_transport)
        self._balance = BalanceWatch(config)
        self._tally = PipelineTally(name, config.redundant_experts if plan.num_expert else 0)
        self._wished = asyncio.Event()
        self._placement: LivePlacement | None = None
        if plan.num_expert:
            layers, experts = plan.model.num_layers, plan.model.num_experts
            self._placement = LivePlacement(
                name,
                config,
                crew,
                self._groups,
                split_evenly(layers, experts, plan.ranks(0).expert),
                self._balance.load,
                self._wished.set,
            )
        self._pulse = Pulse(crew, config.peer_timeout_s, self._on_stats)
        self._mender = Mender(crew, self._pulse, self._groups, self._placement)
        self._loads = RecentLoads()
        self._intake = Intake(name, plan, crew, self._mender.whole)

    def _share(self, rank: int) -> Sequence[tuple[int, int]]:
        return () if self._placement is None else self._placement.share(rank)

    async def start(self) -> None:
        """Load all weights, meet, serve.

        Raises:
            RayError: a checkpoint cannot be loaded, or an actor died again and again.
            TimeoutError: not within `start_timeout_s`.
        """
        for rank in range(self._plan.num_ranks):
            self._crew.fill(rank)
        await within(self._config.start_timeout_s, self._all_ready())
        await within(self._config.start_timeout_s, self._mender.mend(first=True))
        self._crew.keep_spares()

    async def _all_ready(self) -> None:
        while len(self._crew.ready) < self._plan.num_ranks:
            await self._crew.changed()
            for fault in self._crew.faults.values():
                # What an actor refuses it will refuse again; one that died may have had bad luck.
                died = isinstance(fault.error, RayActorError)
                if not died or fault.failures >= _MAX_FIRST_TRIES:
                    raise fault.error

    async def supervise(self) -> None:
        """Carry out what is to be done, for ever.

        Raises:
            RuntimeError: the pipeline could not be mended; it must be replaced as a whole.
        """
        beat = asyncio.ensure_future(self._pulse.beat())
        try:
            while True:
                trouble = asyncio.ensure_future(self._pulse.trouble(self._groups.epoch))
                await _unless(trouble, self._next_job())
                if trouble.done() or (self._placement is not None and self._placement.torn):
                    for rank in await self._mender.mend():
                        self._intake.lost(rank)
                trouble.cancel()
        finally:
            beat.cancel()

    async def _next_job(self) -> None:
        """Wait for something to do, short of a recovery, and do it."""
        if not self._crew.ready and not (self._placement and self._placement.has_wishes):
            changed: asyncio.Future[None] = self._crew.changed()
            wished: asyncio.Future[Any] = asyncio.ensure_future(self._wished.wait())
            try:
                await asyncio.wait((changed, wished), return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
                wished.cancel()
        self._wished.clear()
        if self._crew.ready:
            await self._fold_in()
        elif self._placement and self._placement.has_wishes:
            await self._placement.grant_next(self._crew.filling)
        self._crew.keep_spares()

    async def _fold_in(self) -> None:
        """Let those that are ready serve beside the others, without interrupting them."""
        crew, placement = self._crew, self._placement
        ranks = sorted(crew.ready)
        if placement is not None:
            try:
                await placement.admit({rank: crew.ready[rank] for rank in ranks})
            except (RayError, TimeoutError) as error:
                logger.warning("ranks %s could not join: %s", ranks, describe(error))
                if placement.torn or len(await self._pulse.ask()) < len(crew.serving):
                    return  # it may be the fault of one that serves: the roll call will tell
                for rank in ranks:
                    crew.retire(rank)
                    crew.fill(rank, calm=True)
                return
        crew.join(ranks)
        logger.info("ranks %s serve now", ranks, extra=about("ranks_joined", ranks=ranks))

    async def submit(self, requests: Sequence[GenerateRequest]) -> list[str | None]:
        """See Intake."""
        return await self._intake.submit(requests)

    async def change(self, change: PlacementChange) -> Outcome:
        """Change the placement; returns when it is in force, or why it is not."""
        if self._plan.model.is_dense:
            return ChangeRefused("the model is dense: it has no experts, there is nothing to place")
        if self._placement is None:
            return ChangeRefused(
                "the experts live in the attention actors (expert_actors is 0): there is "
                "nothing to place"
            )
        return await self._placement.change(change)

    def _on_stats(self, stats: Mapping[int, ActorStats]) -> None:
        self._tally.take(time.monotonic(), stats)
        attention = {rank: stats[rank] for rank in self._crew.attention if rank in stats}
        self._intake.note(attention)
        self._loads.add(list(attention.values()))
        if self._placement is not None:
            calm = self._mender.whole.is_set() and not (self._crew.filling or self._crew.ready)
            self._balance.look(stats, self._placement, calm=calm)

    async def view(self, heard: Tally, *, fresh: bool) -> PipelineView:
        """This pipeline and its counts for one who has `heard` others; `fresh`: to this moment.

        Otherwise they are at most a second old, and those of others are left out.
        """
        if fresh:
            self._tally.take(time.monotonic(), await self._pulse.ask())
        return self._tally.view(time.monotonic(), heard, self.report(), whole=fresh)

    def measured(self) -> tuple[Counts, Gauges]:
        """What this pipeline alone has counted, at most a second ago, and how it is."""
        counts, gauges = self._tally.own(self.report())
        return counts, {**gauges, **self._tally.own_shares(time.monotonic())}

    def report(self) -> PipelineReport:
        """This pipeline at this moment."""
        placement = self._placement
        return PipelineReport(
            router=self._identity,
            serving=self._mender.whole.is_set(),
            obstacle=self._mender.obstacle(),
            unfinished=self._intake.unfinished,
            num_attention=self._plan.num_attention,
            attention=tuple(member.name for member in self._crew.attention.values()),
            max_model_len=self._plan.limits.max_model_len,
            placement_version=0 if placement is None else placement.version,
            target=() if placement is None else placement.target.ranks,
            filling=tuple(self._crew.filling),
            faults={rank: str(fault) for rank, fault in self._crew.faults.items()},
            num_spares=self._crew.num_spares,
            recoveries=tuple(self._mender.log.recent),
            recovery_counts=self._mender.log.counts(),
            changes={} if placement is None else dict(placement.outcomes),
            balance=self._balance.report(),
        )

    def load(self) -> PipelineLoad:
        """How busy it has been lately."""
        return self._loads.mean()

    async def drain(self, timeout_s: float) -> None:
        """See Intake; the supervisor goes on mending."""
        await self._intake.drain(timeout_s)

    async def stop(self) -> None:
        """End the loops, then the processes."""
        stops = [
            asyncio.ensure_future(m.handle.stop.remote()) for m in self._crew.attention.values()
        ]
        if stops:
            await asyncio.wait(stops, timeout=_STOP_TIMEOUT_S)
        for stop in stops:
            stop.add_done_callback(forget)
        self._crew.end()


async def _unless(trouble: asyncio.Future[None], work: Coroutine[Any, Any, None]) -> None:
    """Do the work to its end, or until there is trouble: then it is given up."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, trouble}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        while not task.done():
            # Again and again: what it awaits may lose a cancellation, as `wait_for` of 3.11 does.
            task.cancel()
            await asyncio.wait({task}, timeout=_CANCEL_AGAIN_S)
    if not task.cancelled():
        task.result()
