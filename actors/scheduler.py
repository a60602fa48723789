"""Which rows run in the next step, and what a step's tokens change. Decisions only: no tensors.

Sequences move waiting -> running -> gone, and running -> waiting when preempted. Running and
waiting together are always in order of arrival, running first: admission takes the head of
the waiting queue, preemption puts the youngest running sequence back in front of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from actors.messages import GenerateRequest, TokenEvent
from actors.prefix_cache import PrefixCache
from actors.scheduler_limits import SchedulerLimits
from actors.sequence import RunningSequence, ScheduledChunk, StepPlan
from model.block_pool import BlockPool
from model.sampling_params import TokenLogprobs

__all__ = ["RunningSequence", "ScheduledChunk", "Scheduler", "SchedulerLimits", "StepPlan"]


class Scheduler:
    """Continuous batching with chunked prefill over one pool of KV blocks.

    One step is in flight at a time: schedule(), the forward pass, finish_step().
    """

    def __init__(self, limits: SchedulerLimits, pool: BlockPool) -> None:
        """Take `pool`, which nobody else allocates from.

        Raises:
            ValueError: the pool cannot hold one sequence of max_model_len tokens.
        """
        capacity = pool.num_blocks * limits.block_size
        if capacity < limits.max_model_len:
            raise ValueError(
                f"the KV cache holds {capacity} tokens ({pool.num_blocks} blocks of "
                f"{limits.block_size}), fewer than max_model_len {limits.max_model_len}: "
                "give it more memory or lower max_model_len"
            )
        self.limits = limits
        self.pool = pool
        self.prefixes = PrefixCache(pool, limits.block_size, enabled=limits.enable_prefix_caching)
        self.num_preemptions_total = 0
        self._eos_ids = frozenset(limits.eos_token_ids)
        self._num_added = 0
        self._running: list[RunningSequence] = []
        self._waiting: OrderedDict[str, RunningSequence] = OrderedDict()
        self._by_id: dict[str, RunningSequence] = {}  # running and waiting, not ended
        self._in_flight: StepPlan | None = None

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks or rows, those aborted in flight included."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences not admitted yet, or preempted."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether the next schedule() has rows (or a step in flight has yet to be finished)."""
        return bool(self._running or self._waiting)

    def add(self, request: GenerateRequest) -> list[TokenEvent]:
        """Join the waiting queue. A resubmission whose outputs are complete ends at once instead.

        Returns the event of that end, else nothing. The request's outputs are computed again
        with its prompt, and not emitted again.

        Raises:
            ValueError: the id is in use, or the prompt is empty or leaves no room for a token.
        """
        if request.request_id in self._by_id:
            raise ValueError(f"request {request.request_id} is already being served")
        sequence = RunningSequence.of(
            request, self._num_added, self._eos_ids, self.limits.max_model_len
        )
        reason, stop_token_id = sequence.end()
        if reason is not None:
            return [TokenEvent(request.request_id, (), None, reason, stop_token_id)]
        self._num_added += 1
        self._waiting[request.request_id] = self._by_id[request.request_id] = sequence
        return []

    def abort(self, request_id: str) -> bool:
        """Drop a request without an event; False if it is not here.

        Its blocks are free at once, or, where the step in flight writes them, after that step.
        """
        sequence = self._by_id.pop(request_id, None)
        if sequence is None:
            return False
        if self._waiting.pop(request_id, None) is not None:
            return True
        plan = self._in_flight
        if plan and any(c.sequence is sequence for c in plan.decodes + plan.prefills):
            sequence.ended = True
        else:
            self._running.remove(sequence)
            self._release(sequence)
        return True

    def fail(self, sequences: Sequence[RunningSequence]) -> list[int]:
        """Drop sequences of the step in flight that the model cannot continue, without an event.

        Returns the blocks that are theirs alone, to be cleared before that step is finished.
        """
        for sequence in sequences:
            sequence.failed = sequence.ended = True
            if self._by_id.get(sequence.request_id) is sequence:
                del self._by_id[sequence.request_id]
        return self.prefixes.discard(sequences)

    def schedule(self) -> StepPlan:
        """Choose the next step's rows and give them blocks: every decode, then prefill chunks.

        A plan with rows is in flight until finish_step() or reset_computed().
        """
        assert self._in_flight is None, "the last step is not finished"
        plan = StepPlan([], [], 0, [])
        self._schedule_decodes(plan)
        self._schedule_prefills(plan)
        if plan:
            self._in_flight = plan
        return plan

    def _schedule_decodes(self, plan: StepPlan) -> None:
        running, pool, decodes = self._running, self.pool, plan.decodes
        block_size = self.limits.block_size
        index = 0
        # Oldest first, while preemption shortens the list from the other end: no victim has
        # rows in this plan yet, and none is older than the sequence it makes room for.
        while index < len(running):
            sequence = running[index]
            if not sequence.decoding:
                break
            start = sequence.num_computed
            if start == len(sequence.block_ids) * block_size:
                while not pool.num_free and index < len(running):
                    plan.preempted.append(self._preempt_youngest())
                if index == len(running):
                    break
                sequence.block_ids += pool.allocate(1)
            decodes.append(ScheduledChunk(sequence, start, 1, True))
            index += 1
        plan.num_rows = len(decodes)

    def _schedule_prefills(self, plan: StepPlan) -> None:
        # Only the youngest running sequence can be part way through its prefill: a chunk cut
        # short by the budget leaves no row for another one behind it, and one cut short for
        # want of blocks leaves no free block. As who is admitted has a row at once, there are
        # never more running sequences than the budget has rows, and each decode gets its own.
        running, limits = self._running, self.limits
        if running and not running[-1].decoding:
            self._schedule_chunk(running[-1], plan)
        while (
            self._waiting
            and len(running) < limits.max_num_seqs
            and plan.num_rows < limits.max_num_batched_tokens
        ):
            request_id, sequence = next(iter(self._waiting.items()))
            cached = self.prefixes.find(sequence)
            if not self._admissible(sequence, cached):
                break
            del self._waiting[request_id]
            running.append(sequence)
            self.prefixes.begin(sequence, cached)
            self._schedule_chunk(sequence, plan)

    def _admissible(self, sequence: RunningSequence, cached: Sequence[int]) -> bool:
        # Room for all its tokens and the next one, and a block to spare for each sequence
        # that runs: those grow, and what they lack they take back from this one, whose
        # prefill was then for nothing. Simulated on full pools, rows computed / rows needed
        # are 1.0-1.3 so, 1.1-1.6 without the spare blocks, 2.2-3.5 when only the next chunk
        # has to fit; the steps that it costs are 1-5 % more. With nothing running it always
        # holds, so the head of the queue gets in sooner or later. A cached block costs nothing
        # only while somebody holds it: else it is one of the free ones, and now is no longer.
        blocks = len(sequence.token_ids) // self.limits.block_size + 1
        blocks -= self.prefixes.num_shared(cached)
        return self.pool.num_free >= blocks + len(self._running)

    def _schedule_chunk(self, sequence: RunningSequence, plan: StepPlan) -> None:
        """Add what budget and free blocks allow of a prefill."""
        start, held = sequence.num_computed, len(sequence.block_ids)
        limits = self.limits
        remaining = len(sequence.token_ids) - start
        num_tokens = min(
            remaining,
            limits.max_num_batched_tokens - plan.num_rows,
            (held + self.pool.num_free) * limits.block_size - start,
        )
        if num_tokens > 0:
            blocks = -(-(start + num_tokens) // limits.block_size)
            sequence.block_ids += self.pool.allocate(blocks - held)
            samples = num_tokens == remaining
            plan.prefills.append(ScheduledChunk(sequence, start, num_tokens, samples))
            plan.num_rows += num_tokens

    def finish_step(
        self, plan: StepPlan, sampled: Sequence[tuple[int, TokenLogprobs | None]]
    ) -> list[TokenEvent]:
        """Take in a step that ran: `sampled` has one entry per plan.sampling_chunks().

        Returns one event per token, in that order; sequences that end free their blocks.
        """
        assert self._in_flight is (plan or None), "this plan is not the step in flight"
        sampling = plan.sampling_chunks()
        assert len(sampled) == len(sampling), f"{len(sampled)} tokens, {len(sampling)} chunks"
        self._in_flight = None
        for chunk in plan.decodes + plan.prefills:
            chunk.sequence.num_computed += chunk.num_tokens
            self.prefixes.offer(chunk.sequence)
        events: list[TokenEvent] = []
        for chunk, (token_id, logprobs) in zip(sampling, sampled):
            sequence = chunk.sequence
            if sequence.ended:
                continue
            num_cached = 0 if sequence.has_new_tokens else sequence.num_cached_tokens or 0
            sequence.token_ids.append(token_id)
            sequence.output_token_ids.append(token_id)
            sequence.decoding = True
            reason, stop_token_id = None, None
            if len(sequence.token_ids) >= sequence.max_len or token_id in sequence.stop_ids:
                reason, stop_token_id = sequence.end()
                sequence.ended = True
                del self._by_id[sequence.request_id]
            events.append(
                TokenEvent(
                    sequence.request_id,
                    (token_id,),
                    None if logprobs is None else (logprobs,),
                    reason,
                    stop_token_id,
                    num_cached,
                )
            )
        self._drop_ended()
        return events

    def reset_computed(self) -> None:
        """The KV cache is lost: every running sequence waits again, in order, to be recomputed.

        A step in flight is forgotten; its plan must not be finished.
        """
        self._in_flight = None
        self.pool.forget_all()
        self._drop_ended()
        while self._running:
            self._requeue_youngest()

    def check_integrity(self) -> None:
        """Assert what holds between any two calls. Slow: for tests."""
        waiting = list(self._waiting.values())
        self.pool.check_integrity(s.block_ids for s in self._running)
        self.prefixes.check_integrity(self._running)
        assert [s.request_id for s in waiting] == list(self._waiting)
        live = [s for s in self._running if not s.ended] + waiting
        assert {s.request_id: s for s in live} == self._by_id
        arrivals = [s.arrival for s in self._running + waiting]
        assert arrivals == sorted(set(arrivals)), f"out of order of arrival: {arrivals}"
        prefills = self._in_flight.prefills if self._in_flight else []
        done = [c.sequence for c in prefills if c.samples]
        assert all(s.decoding or s in done for s in self._running[:-1]), "a prefill was overtaken"
        assert not any(s.block_ids or s.num_computed or s.decoding for s in waiting)
        bounds = self.limits.max_num_seqs, self.limits.max_num_batched_tokens
        assert len(self._running) <= min(bounds)
        for sequence in self._running:
            sequence.check_integrity(self.limits.block_size)

    def _preempt_youngest(self) -> str:
        sequence = self._requeue_youngest()
        sequence.num_preemptions += 1
        self.num_preemptions_total += 1
        return sequence.request_id

    def _requeue_youngest(self) -> RunningSequence:
        sequence = self._running.pop()
        self._release(sequence)
        sequence.num_computed = sequence.num_offered = 0
        sequence.decoding = False
        request_id = sequence.request_id
        self._waiting[request_id] = sequence
        self._waiting.move_to_end(request_id, last=False)
        return sequence

    def _drop_ended(self) -> None:
        """Free and forget running sequences that ended, in one pass."""
        ended = [s for s in self._running if s.ended]
        if ended:
            for sequence in ended:
                self._release(sequence)
            self._running = [s for s in self._running if not s.ended]

    def _release(self, sequence: RunningSequence) -> None:
        self.pool.free(sequence.block_ids)
        sequence.block_ids = []
