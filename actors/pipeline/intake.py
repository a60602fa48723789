"""Requests into a pipeline: each to one of its attention actors, until it takes no more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

from actors.messages import GenerateRequest
from actors.model_plan import ModelPlan
from actors.patience import within
from actors.pipeline.assignment import MAX_KEYS, Assigner
from actors.pipeline.crew import Crew
from actors.pipeline.pipeline_choice import fits
from actors.ranks.actor_stats import ActorStats

_DRAIN_POLL_S = 0.1
_ANSWER_S = 2.0
_WHOLE_S = 2.0  # most recoveries are over by then

logger = logging.getLogger(__name__)


class Intake:
    """Knows how many requests each attention actor has, and what it was sent."""

    def __init__(
        self,
        pipeline: str,
        plan: ModelPlan,
        crew: Crew,
        whole: asyncio.Event,
    ) -> None:
        """Requests wait for `whole`, but not so long that they miss another pipeline."""
        limits = plan.limits
        self._pipeline = pipeline
        self._longest = limits.max_model_len
        self._lockstep = plan.num_expert > 0
        self._crew = crew
        self._whole = whole
        self._unfinished: dict[int, int] = {}
        self._assigner = Assigner(
            limits.block_size, MAX_KEYS if limits.enable_prefix_caching else 0
        )

    async def submit(self, requests: Sequence[GenerateRequest]) -> list[str | None]:
        """Assign requests that arrived together; returns the name of each one's attention actor.

        None stands for a request whose actor turned out to be gone, that is not for this pipeline,
        or that came while nothing could serve: it is to be submitted again, maybe elsewhere.
        """
        mine = [fits(request, self._pipeline, self._longest) for request in requests]
        taken = iter(await self._share_out([one for one, fit in zip(requests, mine) if fit]))
        return [next(taken) if fit else None for fit in mine]

    async def _share_out(self, requests: Sequence[GenerateRequest]) -> list[str | None]:
        try:
            await within(_WHOLE_S, self._whole.wait())
        except TimeoutError:
            return [None] * len(requests)
        members = self._crew.attention
        chosen = self._assigner.assign(
            requests, {m.name: self._unfinished.get(rank, 0) for rank, m in members.items()}
        )
        batches: dict[str, list[GenerateRequest]] = {m.name: [] for m in members.values()}
        for request, name in zip(requests, chosen, strict=True):
            batches[name].append(request)
        # With experts apart the attention actors step together: those without new work are
        # told too, so that a sleeping one joins the step.
        told = {
            rank: member
            for rank, member in members.items()
            if batches[member.name] or self._lockstep
        }
        counts = await asyncio.gather(
            *(member.handle.submit.remote(batches[member.name]) for member in told.values()),
            return_exceptions=True,
        )
        gone = set()
        for (rank, member), count in zip(told.items(), counts, strict=True):
            if isinstance(count, BaseException):
                gone.add(member.name)
            else:
                self._unfinished[rank] = count
        return [None if name in gone else name for name in chosen]

    def note(self, stats: Mapping[int, ActorStats]) -> None:
        """What attention actors say of themselves."""
        for rank, one in stats.items():
            self._unfinished[rank] = one.num_running + one.num_waiting

    def lost(self, rank: int) -> None:
        """An attention actor is gone, and its requests with it."""
        self._unfinished.pop(rank, None)

    @property
    def unfinished(self) -> int:
        """Requests in all attention actors, as last heard."""
        return sum(self._unfinished.values())

    async def drain(self, timeout_s: float) -> None:
        """Return once no request is left here, but no later than after `timeout_s`.

        Nothing new may be submitted meanwhile.
        """
        deadline_s = time.monotonic() + timeout_s
        while left := await self._count():
            if time.monotonic() >= deadline_s:
                logger.warning("%d requests have to go on elsewhere", left)
                return
            await asyncio.sleep(_DRAIN_POLL_S)

    async def _count(self) -> int:
        """Requests in all attention actors; one that does not answer in time may have one."""
        members = self._crew.attention.values()
        asked = [within(_ANSWER_S, member.handle.unfinished.remote()) for member in members]
        counts = await asyncio.gather(*asked, return_exceptions=True)
        left = 0
        for count in counts:
            if isinstance(count, TimeoutError):
                left += 1
            elif not isinstance(count, BaseException):  # who is dead has none
                left += count
        return left
