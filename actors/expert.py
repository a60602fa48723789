"""The expert actor: some experts, and nothing else. Rows in, weighted sums out.

Life: created, `load`, `join`, `serve`; it never sees a request, and ends when the attention
ranks say so or a peer is lost.
"""

from __future__ import annotations

import asyncio

import ray
import torch

from actors.actor_stats import ActorIdentity, ActorStats
from actors.engine_build import expert_server
from actors.model_plan import ModelPlan
from actors.process_group import Rendezvous
from actors.rank_actor import Progress, RankLife, identify, own_device
from model.checkpoint import Checkpoint
from model.exchange import Exchange
from model.expert_server import ExpertServer
from model.experts import ExpertShard
from model.loading import load_experts
from model.placement import ExpertPlacement
from model.weights import expert_keys


class ExpertActor:
    """One expert rank. Ray runs its async methods; the serving loop has a thread of its own."""

    def __init__(self, pipeline: str, rank: int, plan: ModelPlan) -> None:
        torch.set_num_threads(plan.threads)
        self._plan = plan
        self._identity: ActorIdentity = identify(pipeline, rank, plan)
        self._device = own_device(plan)
        self._progress = Progress()
        self._shard: ExpertShard | None = None
        self._exchange: Exchange | None = None
        self._server: ExpertServer | None = None
        self._life = RankLife(self._identity, lambda: None)

    @ray.method
    async def load(self, placement: ExpertPlacement) -> ActorStats:
        """Read the experts that the placement gives this rank.

        Raises:
            CheckpointError: names the file and key at fault.
        """
        self._life.phase = "loading"
        await asyncio.to_thread(self._load_experts, placement.held_by(self._identity.rank))
        self._life.phase = "loaded"
        return self._stats()

    def _load_experts(self, held: list[tuple[int, int]]) -> None:
        plan, checkpoint = self._plan, Checkpoint(self._plan.model_dir)
        self._progress.total_bytes = checkpoint.total_bytes(
            key for layer, expert in held for key in expert_keys(plan.model, layer, expert)
        )
        self._shard = load_experts(
            checkpoint, plan.model, held, plan.torch_dtype, self._device, self._progress
        )

    @ray.method
    async def join(self, rendezvous: Rendezvous) -> None:
        """Meet the other ranks for a new epoch; returns when all are there."""
        ranks = self._plan.ranks(self._identity.rank)
        self._exchange = await self._life.meet(rendezvous, ranks, self._device)

    @ray.method
    async def suspend(self) -> None:
        """Leave the epoch: nothing is sent or received until `join` begins another."""
        self._life.epochs.interrupt()

    @ray.method
    async def watch(self, epoch: int) -> None:
        """Return once `epoch` is over for this rank, or its loop has ended."""
        await self._life.watch(epoch)

    @ray.method
    async def serve(self) -> None:
        """Start the serving loop."""
        assert self._exchange is not None and self._shard is not None
        self._server = expert_server(self._plan, self._exchange, self._shard, self._device)
        self._life.start(lambda: self._life.epochs.run(self._run_epoch))

    def _run_epoch(self, exchange: Exchange) -> None:
        assert self._server is not None
        self._server.attach(exchange)
        self._server.run()

    @ray.method
    async def stats(self) -> ActorStats:
        """This actor at this moment."""
        return self._stats()

    def _stats(self) -> ActorStats:
        times = None if self._server is None else self._server.times
        return ActorStats(
            identity=self._identity,
            phase=self._life.phase,
            failure=self._life.failure,
            weights_bytes=0 if self._shard is None else self._shard.num_bytes,
            read_bytes=self._progress.read_bytes,
            weights_on_disk_bytes=self._progress.total_bytes,
            num_steps=0 if times is None else times.steps,
            num_rows=0 if times is None else times.rows,
            wait_s=0.0 if times is None else times.wait_s,
            compute_s=0.0 if times is None else times.compute_s,
        )
