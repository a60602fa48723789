"""One pipeline's actors: started together, watched, and replaced one by one when they die.

While an actor is replaced the others keep their weights, their KV cache and their requests; they
only wait for the next epoch, then run the interrupted step again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup
from torch.distributed import TCPStore

from actors.actor_stats import ActorStats, Recovery
from actors.assignment import assign
from actors.messages import GenerateRequest
from actors.model_plan import ModelPlan
from actors.process_group import Rendezvous, host_store
from actors.spawn import Member, Spawner
from configs.schema import WindroseConfig
from model.placement import ExpertPlacement, split_evenly

_MAX_TRIES = 5  # in a row; then the pipeline is given up as a whole
_STOP_TIMEOUT_S = 15.0
_NOTED = 100  # recoveries remembered for /v1/experts

logger = logging.getLogger(__name__)


class Pipeline:
    """Owns the actors; every method runs on the router's event loop."""

    def __init__(
        self, name: str, config: WindroseConfig, plan: ModelPlan, group: PlacementGroup, app: str
    ) -> None:
        self._config = config
        self._plan = plan
        self._spawner = Spawner(name, plan, group, app, config.cpus_per_actor)
        self._members = [self._spawner.spawn(rank) for rank in range(plan.num_ranks)]
        self._unfinished = [0] * plan.num_attention
        self._placement: ExpertPlacement | None = None
        if plan.num_expert:
            self._placement = split_evenly(
                plan.model.num_layers, plan.model.num_experts, plan.ranks(0).expert
            )
        self._host = ray.util.get_node_ip_address()
        self._store: TCPStore | None = None
        self._epoch = 0
        self._whole = asyncio.Event()
        self._recoveries: list[Recovery] = []

    @property
    def attention(self) -> list[Member]:
        """The attention actors, by rank."""
        return self._members[: self._plan.num_attention]

    async def start(self) -> None:
        """Load all weights, meet, serve.

        Raises:
            RayError: an actor failed or died.
            TimeoutError: not within `start_timeout_s`.
        """
        timeout_s = self._config.start_timeout_s
        await _all(map(self._load, self._members), timeout_s)
        await self._meet(timeout_s)
        await _all((member.handle.serve.remote() for member in self._members), timeout_s)
        self._whole.set()

    async def supervise(self) -> None:
        """Wait for trouble and mend it, for ever.

        Raises:
            RuntimeError: the pipeline could not be mended; it must be replaced as a whole.
        """
        while True:
            await self._trouble()
            self._whole.clear()
            await self._recover()
            self._whole.set()

    async def submit(self, requests: Sequence[GenerateRequest]) -> list[str]:
        """Assign requests that arrived together; returns the name of each one's attention actor.

        What an actor that has just died was given goes to another, or to its replacement.
        """
        names: dict[str, str] = {}
        left = list(requests)
        while left:
            members = self.attention
            chosen = assign(len(left), self._unfinished)
            batches: list[list[GenerateRequest]] = [[] for _ in members]
            for request, index in zip(left, chosen, strict=True):
                batches[index].append(request)
            # With experts apart the attention actors step together: those without new work are
            # told too, so that a sleeping one joins the step.
            told = [i for i, batch in enumerate(batches) if batch or self._plan.num_expert]
            counts = await asyncio.gather(
                *(members[i].handle.submit.remote(batches[i]) for i in told),
                return_exceptions=True,
            )
            left = []
            for index, count in zip(told, counts, strict=True):
                if isinstance(count, BaseException):
                    left += batches[index]
                    continue
                self._unfinished[index] = count
                names |= {request.request_id: members[index].name for request in batches[index]}
            if left:
                logger.info("%d requests wait for an attention actor to be replaced", len(left))
                await self._trouble_or_whole()
        return [names[request.request_id] for request in requests]

    async def _trouble_or_whole(self) -> None:
        """Let the supervisor notice what `submit` ran into, then wait until it is mended."""
        await asyncio.sleep(0.05)
        await self._whole.wait()

    async def _trouble(self) -> None:
        """Return when a rank has left the epoch, its loop has ended, or its process has."""
        watches = [
            asyncio.ensure_future(member.handle.watch.remote(self._epoch))
            for member in self._members
        ]
        await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
        for watch in watches:
            watch.add_done_callback(_forget)
            watch.cancel()

    async def _recover(self) -> None:
        at_s, begun = time.time(), time.perf_counter()
        for attempt in range(1, _MAX_TRIES + 1):
            dead, hung = await self._roll_call()
            fenced = time.perf_counter()
            for rank in dead | hung:
                old = self._members[rank]
                ray.kill(old.handle)  # one that only hung must not come back
                self._members[rank] = self._spawner.spawn(rank)
                if old.role == "attention":
                    self._unfinished[rank] = 0
            fresh = [self._members[rank] for rank in sorted(dead | hung)]
            try:
                await _all(map(self._load, fresh), self._config.start_timeout_s)
                started = time.perf_counter()
                await self._meet(self._config.peer_timeout_s)
                await _all(
                    (member.handle.serve.remote() for member in fresh),
                    self._config.start_timeout_s,
                )
            except (RayError, TimeoutError) as error:
                logger.warning("recovery, try %d: %s", attempt, str(error).splitlines()[0])
                continue
            await self._note(
                Recovery(
                    cause="death" if dead else "hang" if hung else "link",
                    dead=tuple((member.role, member.rank) for member in fresh),
                    at_s=at_s,
                    fence_s=fenced - begun,
                    start_s=started - fenced,
                    join_s=time.perf_counter() - started,
                )
            )
            return
        raise RuntimeError(f"the pipeline could not be mended in {_MAX_TRIES} tries")

    async def _roll_call(self) -> tuple[set[int], set[int]]:
        """Make every rank leave the epoch; returns the ranks that are dead and that hang."""
        answers = await asyncio.gather(
            *(
                asyncio.wait_for(
                    asyncio.ensure_future(member.handle.suspend.remote()),
                    self._config.peer_timeout_s,
                )
                for member in self._members
            ),
            return_exceptions=True,
        )
        dead, hung = set(), set()
        for member, answer in zip(self._members, answers, strict=True):
            if isinstance(answer, TimeoutError):
                hung.add(member.rank)
            elif isinstance(answer, BaseException):
                dead.add(member.rank)
        return dead, hung

    async def _note(self, recovery: Recovery) -> None:
        self._recoveries = [*self._recoveries, recovery][-_NOTED:]
        logger.warning(
            "recovered from the %s of %s in %.2f s: fenced %.2f, started %.2f, joined %.2f",
            recovery.cause,
            ", ".join(f"{role} {rank}" for role, rank in recovery.dead) or "a link",
            recovery.total_s,
            recovery.fence_s,
            recovery.start_s,
            recovery.join_s,
        )
        try:
            await self._members[0].handle.note.remote(tuple(self._recoveries))
        except RayError:
            logger.info("attention rank 0 died again before it heard of the recovery")

    def _load(self, member: Member) -> Awaitable[Any]:
        ref: Awaitable[Any]
        if member.role == "attention":
            ref = member.handle.load.remote()
        else:
            ref = member.handle.load.remote(self._placement)
        return ref

    async def _meet(self, timeout_s: float) -> None:
        """Form the next epoch's groups. Attention actors with experts of their own need none."""
        self._epoch += 1
        if self._placement is None:
            return
        if self._store is None:
            self._store = host_store(self._host, self._config.peer_timeout_s)
        meeting = Rendezvous(self._host, self._store.port, self._epoch, self._config.peer_timeout_s)
        await _all(
            (
                member.handle.join.remote(meeting, self._placement)
                if member.role == "attention"
                else member.handle.join.remote(meeting)
                for member in self._members
            ),
            timeout_s,
        )

    async def check(self) -> None:
        """Note how busy the attention actors are; those that do not answer are left out."""
        answers = await asyncio.gather(
            *(member.handle.stats.remote() for member in self.attention), return_exceptions=True
        )
        for index, answer in enumerate(answers):
            if isinstance(answer, ActorStats):
                self._unfinished[index] = answer.num_running + answer.num_waiting

    async def stop(self) -> None:
        """End the loops, then the processes."""
        stops = [asyncio.ensure_future(m.handle.stop.remote()) for m in self.attention]
        await asyncio.wait(stops, timeout=_STOP_TIMEOUT_S)
        for stop in stops:
            stop.add_done_callback(_forget)
        for member in self._members:
            ray.kill(member.handle)


async def _all(calls: Iterable[Awaitable[Any]], timeout_s: float) -> None:
    """Wait for all calls; the first error is everybody's."""
    await asyncio.wait_for(asyncio.gather(*calls), timeout_s)


def _forget(future: asyncio.Future[Any]) -> None:
    """Take note of a result nobody waits for, so that asyncio does not complain of it."""
    if not future.cancelled():
        future.exception()
