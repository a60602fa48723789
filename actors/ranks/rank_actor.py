"""The Ray actor of a pipeline's ranks: a spare process until it is given a rank, then that rank.

Life: created, `load` (which makes it an attention or an expert rank for good), `meet`, then
epochs until the end. An attention rank takes requests by `submit`, or over the connection of
`actors/link.py`, which its tokens leave by.

Whoever holds a handle imports this module. So torch, which takes a second or two and 200 MB, is
only imported by the actor itself, behind everything else if there is no hurry.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import ray

from actors.log_lines import LogSettings
from actors.messages import GenerateRequest
from actors.patience import in_daemon_thread
from actors.ranks.actor_stats import ActorIdentity, ActorStats
from actors.ranks.imports import import_all
from actors.ranks.priority import hurry, step_back
from actors.ranks.progress import Progress
from actors.ranks.start_times import StartTimes
from model import early_memory
from model.placement import ExpertPlacement, Pair

if TYPE_CHECKING:
    from actors.link import LinkAddress
    from actors.model_plan import ModelPlan
    from actors.ranks.attention import AttentionRank
    from actors.ranks.expert import ExpertRank
    from actors.ranks.rank_life import RankLife
    from actors.ranks.rendezvous import Rendezvous

_STOP_TIMEOUT_S = 10.0
_DRAIN_SILENCE_S = 10.0  # else it resubmits what other weights must not go on with


class RankActor:
    """Ray runs its async methods; the rank's loop has a thread of its own."""

    def __init__(
        self,
        pipeline: str,
        device: str,
        packed_plan: bytes,
        calm: bool,
        logs: LogSettings,
        weights_bytes: int = 0,
    ) -> None:
        """`packed_plan`: a pickled ModelPlan, since its types bring torch. `calm`: no hurry.

        `weights_bytes`: to have memory ready for; 0: it is not known for how many.
        """
        early_memory.begin(weights_bytes)
        self._times = StartTimes(begun_s=time.time())
        self._logs = logs
        logs.configure("spare", pipeline=pipeline)
        self._packed_plan = packed_plan
        self._identity = ActorIdentity(
            pipeline=pipeline,
            rank=-1,
            role="spare",
            pid=os.getpid(),
            node=ray.util.get_node_ip_address(),
            # Ray gives a process its one visible GPU, or none.
            device="cuda:0" if device == "cuda" else "cpu",
        )
        self._progress = Progress()
        self._life: RankLife | None = None
        self._taken = asyncio.Event()
        self._attention: AttentionRank | None = None
        self._expert: ExpertRank | None = None
        self._imports = threading.Thread(target=self._import, args=(calm,), daemon=True)
        self._imports.start()
        if not calm:
            self._imports.join()

    def _import(self, calm: bool) -> None:
        import_all(calm)
        plan: ModelPlan = pickle.loads(self._packed_plan)
        if plan.model.bitsandbytes is not None:
            from model.bitsandbytes_library import load_library

            load_library()
        self._times = replace(self._times, imported_s=time.time())

    @ray.method
    async def taken(self) -> None:
        """Return once this process has a rank: for who waits for a spare's end."""
        await self._taken.wait()

    @ray.method
    async def load(self, rank: int, is_attention: bool, pairs: Sequence[Pair], calm: bool) -> None:
        """Become a rank: read its weights (`pairs`: an expert rank's), then wait for `meet`.

        With `calm`, behind everything else that runs on this machine.

        Raises:
            CheckpointError: names the file and key at fault.
        """
        host = self._identity.node
        role: Literal["attention", "expert"] = "attention" if is_attention else "expert"
        self._identity = replace(self._identity, rank=rank, role=role)
        self._logs.configure(role, pipeline=self._identity.pipeline, rank=rank)
        self._taken.set()
        if not calm:
            hurry(self._imports)
        await in_daemon_thread(self._imports.join)
        self._times = replace(self._times, load_begun_s=time.time())
        import torch

        from actors.ranks.attention import AttentionRank
        from actors.ranks.expert import ExpertRank
        from actors.ranks.rank_life import RankLife
        from model.cpu_kernels.in_use import use_threads

        plan: ModelPlan = pickle.loads(self._packed_plan)
        threads = plan.attention_threads if is_attention else plan.expert_threads
        use_threads(threads, plan.torch_dtype, others_too=plan.model.needs_openmp)
        device = torch.device(self._identity.device)
        self._life = life = RankLife(f"{role} rank {rank}", host, device, self._close_links)
        life.phase = "loading"
        if is_attention:
            self._attention = attention = AttentionRank(
                plan, device, self._progress, lambda: life.phase == "serving"
            )
            read, run = attention.load, attention.run
        else:
            self._expert = expert = ExpertRank(plan, device, self._progress)
            read, run = partial(expert.load, pairs), expert.run
        await in_daemon_thread(partial(_read, read, calm))
        early_memory.end()
        self._times = replace(self._times, loaded_s=time.time())
        life.start(partial(run, life.epochs))

    @ray.method
    async def meet(
        self,
        rendezvous: Rendezvous,
        attention: tuple[int, ...],
        expert: tuple[int, ...],
        placement: ExpertPlacement,
    ) -> None:
        """Form the groups of an epoch with these ranks; the loop begins it when it can.

        Raises:
            RuntimeError: a rank did not come in time.
        """
        from model.exchange import Ranks

        assert self._life is not None
        ranks = Ranks(attention, expert, self._identity.rank)
        await self._life.meet(rendezvous, ranks, placement)
        if not self._times.met_s:
            self._times = replace(self._times, met_s=time.time())

    @ray.method
    async def suspend(self, newest: int) -> None:
        """Leave the epoch: nothing is sent or received until one after `newest` has been met for.

        Raises:
            RuntimeError: the rank's loop has failed; it can be in no epoch any more.
        """
        assert self._life is not None
        if self._life.phase in ("failed", "stopped"):
            raise RuntimeError(self._life.failure or "the rank has stopped")
        self._life.epochs.interrupt(newest)

    @ray.method
    async def watch(self, epoch: int) -> bool:
        """Return once this rank has left `epoch` or its loop has ended: True if it has moved on."""
        assert self._life is not None
        return await self._life.watch(epoch)

    @ray.method
    async def move(self, epoch: int) -> None:
        """Attention: leave for an epoch that all have met for, as soon as all are told to."""
        assert self._attention is not None
        self._attention.move(epoch)

    @ray.method
    async def adopt(self, placement: ExpertPlacement) -> None:
        """Attention: use this placement; returns once no step uses an older one."""
        assert self._attention is not None
        await self._attention.adopt(placement)

    @ray.method
    async def hold(self, pairs: Sequence[Pair]) -> None:
        """Expert: hold these (layer, expert) pairs too; returns once they can be served.

        Raises:
            CheckpointError: names the file and key at fault.
        """
        assert self._expert is not None
        expert = self._expert
        missing = expert.want(pairs)
        await in_daemon_thread(lambda: expert.hold(missing))

    @ray.method
    async def keep(self, pairs: Sequence[Pair]) -> None:
        """Expert: give up the weights of all other pairs."""
        assert self._expert is not None
        self._expert.keep(pairs)

    @ray.method
    async def submit(self, requests: Sequence[GenerateRequest]) -> int:
        """Attention: hand in requests (none: only join the next step); returns the unfinished.

        Raises:
            RuntimeError: this rank does not serve (any more).
        """
        if self._attention is None:
            raise RuntimeError(f"{self._identity.role} rank {self._identity.rank} does not serve")
        return self._attention.submit(requests)

    @ray.method
    async def unfinished(self) -> int:
        """Attention: requests that have not ended, but for those of ingresses that are gone.

        To be asked while a pipeline drains: an ingress is taken for gone sooner than else.
        """
        return 0 if self._attention is None else self._attention.unfinished(_DRAIN_SILENCE_S)

    @ray.method
    async def link(self) -> LinkAddress:
        """Attention: where an ingress connects, to hear what every step makes for it.

        When the rank ends or fails, so does the connection: what it has not delivered must be
        submitted elsewhere.

        Raises:
            RuntimeError: this rank has ended, or failed.
        """
        assert self._attention is not None
        return await self._attention.listen(self._identity.node)

    @ray.method
    async def stats(self) -> ActorStats:
        """This actor at this moment."""
        base = ActorStats(
            identity=self._identity,
            phase="created" if self._life is None else self._life.phase,
            failure=None if self._life is None else self._life.failure,
            weights_bytes=0,
            read_bytes=self._progress.read_bytes,
            weights_on_disk_bytes=self._progress.total_bytes,
            start=self._times,
        )
        part = self._attention or self._expert
        return base if part is None else part.stats(base)

    @ray.method
    async def stop(self) -> None:
        """Attention: end the loop, and with it those of all ranks of the pipeline."""
        if self._attention is not None and self._life is not None:
            self._attention.stop()
            self._life.epochs.stop()
            await asyncio.to_thread(self._life.join_thread, _STOP_TIMEOUT_S)
        self._close_links()

    def _close_links(self) -> None:
        if self._attention is not None:
            self._attention.close_links()


def _read(read: Callable[[], None], calm: bool) -> None:
    if calm:
        step_back()
    read()


class AttentionActor(RankActor):
    """A process started for an attention rank; its name is what Ray shows."""


class ExpertActor(RankActor):
    """A process started for an expert rank."""


class SpareActor(RankActor):
    """A process started ahead of need: it takes the rank of the next actor that dies."""
