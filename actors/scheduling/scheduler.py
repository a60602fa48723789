"""Which rows run in the next step, and what a step's tokens change. Decisions only: no tensors.

Sequences move waiting -> running -> gone, and running -> waiting when preempted. Each has its
turn for life: by priority, then by arrival at the ingress. Admission takes who is first among
those that wait, preemption who is last among those that run. So the first of those that run is
never preempted and has rows in every step that is not left to decodes alone: it ends, and so do
all in turn. A request whose actor died has the same turn elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain, islice

from actors.messages import GenerateRequest, TokenEvent
from actors.scheduling.admission import Admission
from actors.scheduling.prefix_cache import PrefixCache
from actors.scheduling.scheduler_limits import SchedulerLimits
from actors.scheduling.sequence import Room, RunningSequence, ScheduledChunk, StepPlan
from actors.scheduling.step_pace import StepPace
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
        limits.check_pool(pool.num_blocks)
        self.limits = limits
        self.pool = pool
        self.prefixes = PrefixCache(
            pool,
            limits.block_size,
            window=limits.sliding_window,
            enabled=limits.enable_prefix_caching,
        )
        self.pace = StepPace(limits.max_num_batched_tokens, limits.max_itl_stretch)
        self._eos_ids = frozenset(limits.eos_token_ids)
        self._num_added = 0
        self._admission = Admission(limits, pool, self.prefixes)
        self._by_id: dict[str, RunningSequence] = {}  # running and waiting, not ended
        self._in_flight: StepPlan | None = None

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks or rows, those aborted in flight included."""
        return len(self._admission.running)

    @property
    def num_waiting(self) -> int:
        """Sequences not admitted yet, or preempted."""
        return len(self._admission.waiting)

    @property
    def num_preemptions_total(self) -> int:
        """How often a sequence lost its blocks to others, so far."""
        return self._admission.num_preemptions

    @property
    def has_work(self) -> bool:
        """Whether the next schedule() has rows (or a step in flight has yet to be finished)."""
        return bool(self._admission.running or self._admission.waiting)

    def add(self, request: GenerateRequest) -> list[TokenEvent]:
        """Join those that wait. A resubmission whose outputs are complete ends at once instead.

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
        self._by_id[request.request_id] = sequence
        self._admission.waiting.add(sequence)
        return []

    def abort(self, request_id: str) -> bool:
        """Drop a request without an event; False if it is not here.

        Its blocks are free at once, or, where the step in flight writes them, after that step.
        """
        sequence = self._by_id.pop(request_id, None)
        if sequence is None:
            return False
        if self._admission.waiting.remove(request_id):
            return True
        plan = self._in_flight
        if plan and any(c.sequence is sequence for c in plan.decodes + plan.prefills):
            sequence.ended = True
        else:
            self._admission.drop(sequence)
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
        room, head = self._room(), self._admission.waiting.first
        if head is not None and room.of(head):
            plan.preempted += self._admission.make_way(head)
        self._schedule_running(plan, room)
        if not plan.decodes and not room.prompt_rows:
            room.prompt_rows = room.rows  # the decodes that the step was left to gave way
        self._schedule_prefills(plan, room)
        if plan:
            self._in_flight = plan
        return plan

    def _room(self) -> Room:
        admission = self._admission
        decodes = sum(one.decoding for one in admission.running)
        rows = max(decodes, self.pace.most_rows())
        next_in = islice(admission.waiting, admission.num_places)
        prompts = sum(not one.output_token_ids for one in chain(admission.running, next_in))
        return Room(rows, self.pace.max_prefill_rows(decodes, prompts) if prompts else rows)

    def _schedule_running(self, plan: StepPlan, room: Room) -> None:
        """Add every decode, and give the first of the prefills under way a block if it has none.

        The first turn is the first served, while preemption takes from the other end: so no
        victim has rows yet, and it is always one whose turn is behind that of who lacks a block.
        """
        running, pool = self._admission.running, self.pool
        index, prefilling = 0, False
        while index < len(running):
            sequence = running[index]
            index, decoding = index + 1, sequence.decoding
            if not decoding and (prefilling or not room.of(sequence)):
                continue
            prefilling = prefilling or not decoding
            start = sequence.num_computed
            if start == sequence.end_block * self.limits.block_size:
                while not pool.num_free and (index < len(running) or decoding):
                    plan.preempted.append(self._admission.preempt_last())
                    if index > len(running):
                        return  # it was the last itself
                if pool.num_free:
                    sequence.block_ids += pool.allocate(1)
            if decoding:
                plan.decodes.append(ScheduledChunk(sequence, start, 1, True))
                plan.num_rows += 1
                room.rows -= 1

    def _schedule_prefills(self, plan: StepPlan, room: Room) -> None:
        """Add chunks of those under way and of those that come in now, in turn."""
        begun = deque(one for one in self._admission.running if not one.decoding)
        head = self._admission.waiting.first
        while begun or head is not None:
            if head is None or (begun and begun[0].turn < head.turn):
                self._schedule_chunk(begun.popleft(), plan, room)
            elif room.of(head) and self._admission.admit(head):  # with a row at once
                self._schedule_chunk(head, plan, room)
                head = self._admission.waiting.first
            else:
                head = None  # and nobody comes in before it

    def _schedule_chunk(self, sequence: RunningSequence, plan: StepPlan, room: Room) -> None:
        """Add what room and free blocks allow of a prefill."""
        start, given = sequence.num_computed, sequence.end_block
        remaining, block_size = len(sequence.token_ids) - start, self.limits.block_size
        slots = (given + self.pool.num_free) * block_size - start
        num_tokens = min(remaining, room.of(sequence), slots)
        if num_tokens > 0:
            blocks = -(-(start + num_tokens) // block_size)
            sequence.block_ids += self.pool.allocate(blocks - given)
            samples = num_tokens == remaining
            plan.prefills.append(ScheduledChunk(sequence, start, num_tokens, samples))
            plan.num_rows += num_tokens
            room.take(sequence, num_tokens)

    def finish_step(
        self, plan: StepPlan, sampled: Sequence[tuple[int, TokenLogprobs | None] | bytes]
    ) -> list[TokenEvent]:
        """Take in a step that ran: `sampled` has one entry per plan.sampling_chunks().

        That is a token, or the vector of a pooled sequence. Returns one event for each, in that
        order; sequences that end free their blocks.
        """
        assert self._in_flight is (plan or None), "this plan is not the step in flight"
        sampling = plan.sampling_chunks()
        assert len(sampled) == len(sampling), f"{len(sampled)} tokens, {len(sampling)} chunks"
        self._in_flight = None
        for chunk in plan.decodes + plan.prefills:
            chunk.sequence.num_computed += chunk.num_tokens
            self.prefixes.offer(chunk.sequence)
            self._admission.free_unseen(chunk.sequence)
        events: list[TokenEvent] = []
        for chunk, made in zip(sampling, sampled):
            sequence = chunk.sequence
            if sequence.ended:
                continue
            event = sequence.give(made) if isinstance(made, bytes) else sequence.take(*made)
            if sequence.ended:
                del self._by_id[sequence.request_id]
            events.append(event)
        self._admission.drop_ended()
        return events

    def reset_computed(self) -> None:
        """The KV cache is lost: every running sequence waits again, in order, to be recomputed.

        A step in flight is forgotten; its plan must not be finished.
        """
        self._in_flight = None
        self.pool.forget_all()
        self._admission.drop_ended()
        self._admission.requeue_all()

    def check_integrity(self) -> None:
        """Assert what holds between any two calls. Slow: for tests."""
        admission = self._admission
        admission.check_integrity()
        live = [one for one in [*admission.running, *admission.waiting] if not one.ended]
        assert {one.request_id: one for one in live} == self._by_id
