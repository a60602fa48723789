"""One attention rank's engine: schedule, run the decoder, sample or pool, report. No Ray in here.

The attention actor drives it; a benchmark or a test can drive it as well, in any process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from time import perf_counter

import torch

from actors.messages import GenerateRequest, TokenEvent
from actors.metrics.histogram import Histogram
from actors.metrics.metric_table import QUEUE_TIME
from actors.ranks.pooled_step import PooledStep, wanted_rows
from actors.scheduling.micro_batches import MicroBatches, RunStep
from actors.scheduling.preemption_log import PreemptionLog
from actors.scheduling.scheduler import RunningSequence, ScheduledChunk, Scheduler, StepPlan
from model.decoder import Decoder
from model.kv_cache import KVCache
from model.sampler import NonFiniteLogits, SampleRow, sample
from model.sampling_params import TokenLogprobs
from model.step_batch import Chunk, StepBatch, build_batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine holds and has done, at one moment."""

    num_running: int
    num_waiting: int
    kv_cache_usage: float  # 0..1
    num_preemptions: int
    prefix_cache_queries: int  # tokens of admitted sequences
    prefix_cache_hits: int  # of those, not computed again
    num_steps: int
    num_rows: int
    wait_s: float  # the three of them: all its steps
    compute_s: float
    communication_s: float
    sent_bytes: int
    queue_time: tuple[float, ...]  # seconds from arrival to the first row: a Histogram's value
    micro_batches: int  # of the last step


class Engine:
    """Runs the sequences of one attention rank; the experts are behind the decoder's dispatcher.

    `plan_step`, then `run_step` with that plan: apart, so that ranks can agree on a step between.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        scheduler: Scheduler,
        device: torch.device,
        micro_batches: MicroBatches,
        pooled: PooledStep | None = None,
    ) -> None:
        """With `pooled` the model has no head to draw tokens with: all requests are pooled."""
        self._decoder = decoder
        self._cache = cache
        self._device = device
        self._pooled = pooled
        self.scheduler = scheduler
        self.micro_batches = micro_batches
        self.last_step = RunStep(0, 0, 0.0, 0.0)
        self._times = decoder.times
        self._preemptions = PreemptionLog()
        self._queue_time = Histogram(QUEUE_TIME.buckets)

    def add(self, request: GenerateRequest) -> list[TokenEvent]:
        """Queue a request; returns its end at once if it had already reached it.

        Raises:
            ValueError: it can never run here.
        """
        if (request.pooling is None) != (self._pooled is None):
            raise ValueError(f"request {request.request_id} asks for what the model does not give")
        return self.scheduler.add(request)

    def abort(self, request_id: str) -> None:
        """Forget a request; its blocks are free after the step in flight at the latest."""
        self.scheduler.abort(request_id)
        if self._pooled is not None:
            self._pooled.forget(request_id)

    def plan_step(self) -> StepPlan:
        """Choose the rows of the next step; none if nothing can run."""
        plan = self.scheduler.schedule()
        for chunk in plan.prefills:
            self._note_queue_time(chunk.sequence)
        if plan.preempted:
            self._preemptions.note(perf_counter(), plan.preempted)
        return plan

    def _note_queue_time(self, sequence: RunningSequence) -> None:
        """Measure a request's wait when its first row runs; not one that began elsewhere."""
        if sequence.begun:
            return
        sequence.begun = True
        request = sequence.request
        if request.arrival_s and not request.output_token_ids:
            # Clocks of two machines may differ.
            sequence.queue_s = max(0.0, time.time() - request.arrival_s)
            self._queue_time.observe(sequence.queue_s)

    @torch.inference_mode()
    def run_step(self, plan: StepPlan, micro_batches: int = 1) -> list[TokenEvent]:
        """Run the planned rows, in so many micro-batches, and sample; returns the new tokens.

        Raises:
            RuntimeError: a rank that holds experts is gone.
        """
        times = self._times
        began_s, away_s, wait_s = perf_counter(), times.away_s, times.wait_s
        batch = build_batch(
            [_chunk(chunk) for chunk in plan.decodes],
            [_chunk(chunk) for chunk in plan.prefills],
            self._cache.block_size,
            self._device,
        )
        made: Sequence[tuple[int, TokenLogprobs | None] | bytes]
        if self._pooled is None:
            logits_CV = self._decoder.forward(batch, self._cache, micro_batches)
            made, failed = self._sample(logits_CV, plan)
        else:
            made, failed = self._pool(self._pooled, batch, plan, micro_batches)
        events = self.scheduler.finish_step(plan, made) + failed
        self.last_step = RunStep(
            micro_batches, plan.num_rows, self._decoder.layers_s, times.wait_s - wait_s
        )
        times.steps += 1
        times.rows += plan.num_rows
        times.compute_s += perf_counter() - began_s - (times.away_s - away_s)
        return events

    def _sample(
        self, logits_CV: torch.Tensor, plan: StepPlan
    ) -> tuple[list[tuple[int, TokenLogprobs | None]], list[TokenEvent]]:
        """Draw a token for every sampling chunk; sequences that have none end with "abort"."""
        chunks = plan.sampling_chunks()
        rows = [_sample_row(chunk) for chunk in chunks]
        try:
            drawn = sample(logits_CV, rows)
            return list(zip(drawn.token_ids, drawn.logprobs, strict=True)), []
        except NonFiniteLogits as error:
            bad = set(error.rows)
        failed = self._fail([chunks[index].sequence for index in bad])
        good = [index for index in range(len(rows)) if index not in bad]
        drawn = sample(logits_CV[good], [rows[index] for index in good])
        entries = dict(zip(good, zip(drawn.token_ids, drawn.logprobs, strict=True), strict=True))
        # What stands for an aborted sequence is never looked at.
        return [entries.get(index, (0, None)) for index in range(len(rows))], failed

    def _pool(
        self, pooled: PooledStep, batch: StepBatch, plan: StepPlan, micro_batches: int
    ) -> tuple[list[bytes], list[TokenEvent]]:
        """Run the rows; a vector for every chunk that ends a prompt, as `_sample` with tokens."""
        rows = wanted_rows(plan, batch)
        rows_R = torch.tensor(list(chain(*rows)), dtype=torch.int64, device=self._device)
        hidden_RD = self._decoder.hidden(batch, self._cache, rows_R, micro_batches)
        vectors = pooled.take(plan, rows, hidden_RD)
        chunks = plan.sampling_chunks()
        lost = [one.sequence for one, vector in zip(chunks, vectors, strict=True) if vector is None]
        return [vector or b"" for vector in vectors], self._fail(lost) if lost else []

    def _fail(self, lost: list[RunningSequence]) -> list[TokenEvent]:
        """End sequences for which the model gave no finite numbers."""
        if blocks := self.scheduler.fail(lost):
            self._cache.clear(blocks)
        for sequence in lost:
            logger.error("request %s: the model gave no finite numbers", sequence.request_id)
        return [TokenEvent(sequence.request_id, (), None, "abort") for sequence in lost]

    def run(self, requests: list[GenerateRequest], on_event: Callable[[TokenEvent], None]) -> None:
        """Run requests to their end in this thread: offline use with a local dispatcher."""
        for request in requests:
            for event in self.add(request):
                on_event(event)
        while self.scheduler.has_work:
            for event in self.run_step(self.plan_step()):
                on_event(event)

    def stats(self) -> EngineStats:
        """A snapshot for metrics."""
        return EngineStats(
            num_running=self.scheduler.num_running,
            num_waiting=self.scheduler.num_waiting,
            kv_cache_usage=self.scheduler.pool.usage,
            num_preemptions=self.scheduler.num_preemptions_total,
            prefix_cache_queries=self.scheduler.prefixes.num_queried_tokens,
            prefix_cache_hits=self.scheduler.prefixes.num_hit_tokens,
            num_steps=self._times.steps,
            num_rows=self._times.rows,
            wait_s=self._times.wait_s,
            compute_s=self._times.compute_s,
            communication_s=self._times.communication_s,
            sent_bytes=self._times.sent_bytes,
            queue_time=self._queue_time.value,
            micro_batches=self.last_step.micro_batches,
        )


def _chunk(chunk: ScheduledChunk) -> Chunk:
    sequence = chunk.sequence
    return Chunk(
        sequence.token_ids[chunk.start : chunk.start + chunk.num_tokens],
        chunk.start,
        sequence.block_ids,
        chunk.samples,
        sequence.first_block,
    )


def _sample_row(chunk: ScheduledChunk) -> SampleRow:
    sequence = chunk.sequence
    return SampleRow(
        sequence.request.params,
        len(sequence.token_ids),
        sequence.request.prompt_token_ids,
        sequence.output_token_ids,
    )
