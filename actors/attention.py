"""The attention actor: shared layers, KV cache, scheduling and sampling of its own requests.

Life: created, `load`, `join` (only with expert actors), `serve`, then requests in by `submit`
and tokens out by `stream`, until `stop`. The maths and the loop are elsewhere; this is the shell.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import ray
import torch

from actors.actor_stats import ActorIdentity, ActorStats, Recovery
from actors.engine import Engine
from actors.engine_build import all_experts, build_engine, exact_dispatcher
from actors.messages import GenerateRequest, StepEvents
from actors.model_plan import ModelPlan
from actors.process_group import Rendezvous
from actors.rank_actor import Progress, RankLife, identify, own_device
from actors.step_loop import StepLoop
from model.checkpoint import Checkpoint
from model.decoder import DecoderWeights
from model.dispatch import Dispatcher, LocalDispatcher
from model.exact_dispatch import ExactDispatcher
from model.exchange import Exchange
from model.expert_load import ExpertLoad
from model.experts import ExpertShard
from model.loading import load_decoder, load_experts
from model.placement import ExpertPlacement
from model.weights import attention_keys, expert_keys


class AttentionActor:
    """One attention rank. Ray runs its async methods; the step loop has a thread of its own."""

    def __init__(self, pipeline: str, rank: int, plan: ModelPlan) -> None:
        torch.set_num_threads(plan.threads)
        self._plan = plan
        self._identity: ActorIdentity = identify(pipeline, rank, plan)
        self._device = own_device(plan)
        self._progress = Progress()
        self._weights: DecoderWeights | None = None
        self._shard: ExpertShard | None = None
        self._exchange: Exchange | None = None
        self._placement: ExpertPlacement | None = None
        self._load: ExpertLoad | None = None
        self._engine: Engine | None = None
        self._step_loop: StepLoop | None = None
        self._dispatcher: Dispatcher | None = None
        self._recoveries: tuple[Recovery, ...] = ()
        self._outboxes: dict[str, asyncio.Queue[StepEvents | None]] = {}
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._life = RankLife(self._identity, self._close_outboxes)

    @ray.method
    async def load(self) -> ActorStats:
        """Read this rank's weights; in the colocated topology the experts too.

        Raises:
            CheckpointError: names the file and key at fault.
        """
        self._life.phase = "loading"
        await asyncio.to_thread(self._load_weights)
        self._life.phase = "loaded"
        return self._stats()

    def _load_weights(self) -> None:
        plan, checkpoint = self._plan, Checkpoint(self._plan.model_dir)
        held = all_experts(plan) if plan.num_expert == 0 else []
        keys = attention_keys(plan.model)
        for layer, expert in held:
            keys += expert_keys(plan.model, layer, expert)
        self._progress.total_bytes = checkpoint.total_bytes(keys)
        dtype, device = plan.torch_dtype, self._device
        self._weights = load_decoder(checkpoint, plan.model, dtype, device, self._progress)
        if held:
            self._shard = load_experts(checkpoint, plan.model, held, dtype, device, self._progress)

    @ray.method
    async def join(self, rendezvous: Rendezvous, placement: ExpertPlacement) -> None:
        """Meet the other ranks for a new epoch; returns when all are there."""
        self._placement = placement
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
    async def note(self, recoveries: tuple[Recovery, ...]) -> None:
        """Keep the pipeline's recoveries so far, for whoever asks for stats."""
        self._recoveries = recoveries

    @ray.method
    async def serve(self) -> None:
        """Build the engine and start the step loop; requests may come from now on."""
        self._event_loop = asyncio.get_running_loop()
        engine = await asyncio.to_thread(self._build_engine)
        self._step_loop = StepLoop(engine, self._exchange, self._emit)
        self._life.start(self._run)

    def _run(self) -> None:
        assert self._step_loop is not None
        if self._exchange is None:
            self._step_loop.run()
        else:
            self._life.epochs.run(self._run_epoch)

    def _run_epoch(self, exchange: Exchange) -> None:
        assert self._step_loop is not None and self._placement is not None
        assert isinstance(self._dispatcher, ExactDispatcher)
        self._dispatcher.attach(exchange, self._placement)
        self._step_loop.attach(exchange)
        self._step_loop.run()

    def _build_engine(self) -> Engine:
        assert self._weights is not None
        self._dispatcher = self._make_dispatcher()
        built = build_engine(self._plan, self._weights, self._dispatcher, self._device)
        self._engine, self._load = built.engine, built.load
        return built.engine

    def _make_dispatcher(self) -> Dispatcher:
        if self._shard is not None:
            return LocalDispatcher(self._shard)
        assert self._exchange is not None and self._placement is not None
        return exact_dispatcher(self._plan, self._exchange, self._placement, self._device)

    @ray.method
    async def submit(self, requests: Sequence[GenerateRequest]) -> int:
        """Hand in requests (none: only join the others' next step); returns the unfinished ones.

        Raises:
            RuntimeError: this rank does not serve (any more).
        """
        if self._step_loop is None or self._life.phase != "serving":
            raise RuntimeError(f"attention rank {self._identity.rank} is {self._life.phase}")
        self._step_loop.submit(requests)
        return self._step_loop.num_unfinished

    @ray.method
    async def abort(self, request_ids: Sequence[str]) -> None:
        """Drop requests whose client is gone; their blocks are free after the running step."""
        if self._step_loop is not None:
            self._step_loop.abort(request_ids)

    @ray.method
    async def stream(self, ingress_id: str) -> AsyncGenerator[StepEvents, None]:
        """Yield what every step made for one ingress, until this rank ends.

        Raises:
            RuntimeError: the rank failed; what it has not delivered must be submitted elsewhere.
        """
        outbox = self._outbox(ingress_id)
        while True:
            events = await outbox.get()
            if events is None:
                break
            while not outbox.empty():
                more = outbox.get_nowait()
                if more is None:
                    yield events
                    return
                events = events + more
            yield events
        if self._life.failure is not None:
            raise RuntimeError(self._life.failure)

    @ray.method
    async def stats(self) -> ActorStats:
        """This actor at this moment."""
        return self._stats()

    def _stats(self) -> ActorStats:
        engine = None if self._engine is None else self._engine.stats()
        placement = self._placement
        shard_bytes = 0 if self._shard is None else self._shard.num_bytes
        return ActorStats(
            identity=self._identity,
            phase=self._life.phase,
            failure=self._life.failure,
            weights_bytes=shard_bytes + (0 if self._weights is None else self._weights.num_bytes),
            read_bytes=self._progress.read_bytes,
            weights_on_disk_bytes=self._progress.total_bytes,
            placement_version=0 if placement is None else placement.version,
            placement=() if placement is None else placement.ranks,
            expert_tokens=() if self._load is None else self._load.totals(),
            num_running=0 if engine is None else engine.num_running,
            num_waiting=0 if engine is None else engine.num_waiting,
            kv_cache_usage=0.0 if engine is None else engine.kv_cache_usage,
            num_preemptions=0 if engine is None else engine.num_preemptions,
            num_rows=0 if engine is None else engine.num_rows,
            num_steps=0 if engine is None else engine.num_steps,
            recoveries=self._recoveries,
        )

    @ray.method
    async def stop(self) -> None:
        """End the step loop, and with it those of all ranks of the pipeline."""
        if self._step_loop is not None:
            self._step_loop.stop()
            self._life.epochs.stop()
            await asyncio.to_thread(self._life.join_thread, 10.0)
        for outbox in self._outboxes.values():
            outbox.put_nowait(None)

    def _outbox(self, ingress_id: str) -> asyncio.Queue[StepEvents | None]:
        return self._outboxes.setdefault(ingress_id, asyncio.Queue())

    def _emit(self, ingress_id: str, events: StepEvents) -> None:
        assert self._event_loop is not None
        self._event_loop.call_soon_threadsafe(self._deliver, ingress_id, events)

    def _deliver(self, ingress_id: str, events: StepEvents) -> None:
        self._outbox(ingress_id).put_nowait(events)

    def _close_outboxes(self) -> None:
        for outbox in self._outboxes.values():
            outbox.put_nowait(None)
