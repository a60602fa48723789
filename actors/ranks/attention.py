"""What an attention rank holds and does: shared layers, KV cache, engine, step loop, streams.

The maths and the loop are elsewhere; the Ray side is `rank_actor.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace

import torch

from actors.link import LinkAddress
from actors.messages import GenerateRequest
from actors.model_plan import ModelPlan
from actors.ranks.actor_stats import ActorStats
from actors.ranks.engine_build import (
    LOAD_WORKERS,
    BuiltEngine,
    all_experts,
    build_engine,
    exact_dispatcher,
    quantized_cache,
)
from actors.ranks.epochs import Epoch, Epochs
from actors.ranks.ingress_links import IngressLinks
from actors.ranks.progress import Progress
from actors.ranks.step_loop import StepLoop
from model.dispatch import LocalDispatcher
from model.exact_dispatch import ExactDispatcher
from model.exchange import LoopEnd
from model.expert_repeats import Repeats
from model.host_memory import give_back_freed
from model.loading import load_decoder, load_experts
from model.placement import ExpertPlacement
from model.weights import attention_keys, expert_keys, stored_keys


class AttentionRank:
    """One attention rank. Built on an event loop, where its ingresses are heard."""

    def __init__(
        self,
        plan: ModelPlan,
        device: torch.device,
        progress: Progress,
        serves: Callable[[], bool],
    ) -> None:
        """`serves()` tells whether the loop runs."""
        self._serves = serves
        self._plan = plan
        self._device = device
        self._progress = progress
        self._event_loop = asyncio.get_running_loop()
        self._links = IngressLinks(self)
        self._built: BuiltEngine | None = None
        self._step_loop: StepLoop | None = None
        self._dispatcher: ExactDispatcher | None = None
        self._placement: ExpertPlacement | None = None
        self._weights_bytes = 0

    def load(self) -> None:
        """Read the weights, in the colocated topology the experts' too, and build the engine.

        Raises:
            ValueError: names the file and key at fault.
        """
        plan = self._plan
        held = all_experts(plan) if plan.num_expert == 0 else []
        keys = attention_keys(plan.model)
        for layer, expert in held:
            keys += stored_keys(plan.model, expert_keys(plan.model, layer, expert))
        checkpoint = plan.checkpoint(frozenset(keys), self._progress.fetched)
        self._progress.begin(checkpoint.total_bytes(keys))
        dtype, device = plan.torch_dtype, self._device
        cache = quantized_cache(plan, checkpoint)
        weights = load_decoder(
            checkpoint, plan.model, dtype, device, self._progress, bits=plan.bits, cache=cache
        )
        self._weights_bytes = weights.num_bytes
        dispatcher: LocalDispatcher | ExactDispatcher | None = None
        if held:
            shard = load_experts(
                checkpoint,
                plan.model,
                held,
                dtype,
                device,
                self._progress,
                workers=LOAD_WORKERS,
                bits=plan.bits,
                cache=cache,
            )
            self._weights_bytes += shard.num_bytes
            dispatcher = LocalDispatcher(shard)
        elif plan.num_expert:
            dispatcher = self._dispatcher = exact_dispatcher(plan, device)
        give_back_freed()
        self._built = build_engine(plan, weights, dispatcher, device)
        self._step_loop = StepLoop(self._built.engine, None, self._links.tell)

    def run(self, epochs: Epochs) -> None:
        """Serve until told to stop: over epochs, or alone where no experts are elsewhere."""
        assert self._step_loop is not None
        if self._dispatcher is None:
            self._step_loop.run()
        else:
            epochs.run(self._run_epoch)

    def _run_epoch(self, epoch: Epoch) -> LoopEnd:
        assert self._step_loop is not None and self._dispatcher is not None
        self._dispatcher.attach(epoch.exchange, epoch.placement)
        self._note_placement(epoch.placement)
        self._step_loop.attach(epoch.exchange, epoch.number)
        return self._step_loop.run()

    def _note_placement(self, placement: ExpertPlacement) -> None:
        assert self._step_loop is not None
        self._placement = placement
        self._step_loop.placement_version = placement.version

    async def adopt(self, placement: ExpertPlacement) -> None:
        """Use this placement from the next step on; returns once no step uses an older one."""
        assert self._step_loop is not None
        done = self._event_loop.create_future()

        def take_over() -> None:
            assert self._dispatcher is not None and self._placement is not None
            # An epoch that began meanwhile may have brought a newer one.
            if placement.version > self._placement.version:
                self._dispatcher.set_placement(placement)
                self._note_placement(placement)
            self._event_loop.call_soon_threadsafe(_end, done)

        self._step_loop.between_steps(take_over)
        await done

    def move(self, epoch: int) -> None:
        """Go over to an epoch that has been met for, together with all attention ranks."""
        assert self._step_loop is not None
        self._step_loop.move(epoch)

    async def listen(self, host: str) -> LinkAddress:
        """Where ingresses connect.

        Raises:
            RuntimeError: this rank has ended.
        """
        return await self._links.listen(host)

    def submit(self, requests: Sequence[GenerateRequest]) -> int:
        """Hand in requests (none: only join the others' next step); returns the unfinished ones.

        Raises:
            RuntimeError: this rank does not serve (any more).
        """
        if self._step_loop is None or not self._serves():
            raise RuntimeError("the attention rank does not serve")
        self._links.expect({request.ingress_id for request in requests})
        self._step_loop.submit(requests)
        return self._step_loop.num_unfinished

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop requests whose client is gone; their blocks are free after the running step."""
        if self._step_loop is not None:
            self._step_loop.abort(request_ids)

    def drop_ingress(self, ingress_id: str) -> None:
        """Drop the requests of an ingress that is gone."""
        if self._step_loop is not None:
            self._step_loop.drop_ingress(ingress_id)

    def unfinished(self, silence_s: float) -> int:
        """Requests not ended, those of ingresses silent for so long dropped first."""
        self._links.drop_silent(silence_s)
        return 0 if self._step_loop is None else self._step_loop.num_unfinished

    def stop(self) -> None:
        """End the step loop, and with it those of all ranks of the pipeline."""
        if self._step_loop is not None:
            self._step_loop.stop()

    def close_links(self) -> None:
        """End every connection behind what has been sent."""
        self._links.close()

    def stats(self, base: ActorStats) -> ActorStats:
        """`base` with this rank's part filled in."""
        if self._built is None:
            return base
        engine, placement = self._built.engine.stats(), self._placement
        load = self._built.load
        return replace(
            base,
            weights_bytes=self._weights_bytes,
            placement_version=0 if placement is None else placement.version,
            placement=() if placement is None else placement.ranks,
            expert_tokens=() if load is None else load.totals(),
            expert_repeats=astuple(Repeats() if load is None else load.repeats()),
            num_running=engine.num_running,
            num_waiting=engine.num_waiting,
            kv_cache_usage=engine.kv_cache_usage,
            recent_ttft_s=self._step_loop.recent_ttft_s() if self._step_loop is not None else 0.0,
            num_preemptions=engine.num_preemptions,
            prefix_cache_queries=engine.prefix_cache_queries,
            prefix_cache_hits=engine.prefix_cache_hits,
            num_rows=engine.num_rows,
            num_steps=engine.num_steps,
            wait_s=engine.wait_s,
            compute_s=engine.compute_s,
            communication_s=engine.communication_s,
            sent_bytes=engine.sent_bytes,
            queue_time=engine.queue_time,
            micro_batches=engine.micro_batches,
        )


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
