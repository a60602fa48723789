"""A scheduler over a fake model that sees tokens only through the blocks it was told to use.

The oracle is `simulated_requests.alone`. A row in the wrong place, a block with two owners, a
token computed twice or not at all: each changes what the model reads, and so what the request
answers. Which cached prefix a sequence gets is told by `ShadowCache`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from actors.messages import GenerateRequest, TokenEvent
from actors.scheduling.scheduler import (
    RunningSequence,
    ScheduledChunk,
    Scheduler,
    SchedulerLimits,
    StepPlan,
)
from model.block_pool import BlockPool
from model.sampling_params import TokenLogprobs
from tests.actors.shadow_cache import ShadowCache
from tests.actors.simulated_requests import Answer, alone, next_token


class Simulation:
    """A scheduler, a fake KV cache, and a record of what every client got."""

    def __init__(self, limits: SchedulerLimits, num_blocks: int) -> None:
        self.limits = limits
        self.most_running = min(limits.max_num_seqs, limits.max_num_batched_tokens)
        self.pool = BlockPool(num_blocks)
        self.scheduler = Scheduler(limits, self.pool)
        self.cache = ShadowCache(
            num_blocks,
            limits.block_size,
            window=limits.sliding_window,
            shares=limits.enable_prefix_caching,
        )
        self.requests: dict[str, GenerateRequest] = {}  # live
        self.answers: dict[str, Answer] = {}
        self.got: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}  # rows of those that run whose KV is in place
        self.cached: dict[str, int] = {}  # tokens the live requests were first admitted with
        self.past_prefill: set[str] = set()
        self.began: set[str] = set()  # admitted in this step
        self.turns: dict[str, tuple[int, float, int]] = {}
        self.now_s = 0.0
        self.num_joined = self.num_mixed = self.num_cut = self.num_aborted = self.num_failed = 0
        self.num_overtook = self.num_paced = 0
        self.num_queried = self.num_hits = 0
        self.num_passed = self.num_hits_behind = 0  # blocks freed unseen; hits that lack such

    def add(self, request: GenerateRequest) -> None:
        if request.request_id not in self.answers:
            self.answers[request.request_id] = alone(request, self.limits.max_model_len)
            self.got[request.request_id] = []
        self.requests[request.request_id] = request
        turn = (request.priority, request.arrival_s, self.num_joined)
        self.num_overtook += any(turn < self.turns[one] for one in self.computed)
        self.turns[request.request_id] = turn
        self.num_joined += 1
        assert self.scheduler.add(request) == []

    def abort(self, request_id: str) -> None:
        assert self.scheduler.abort(request_id)
        assert not self.scheduler.abort(request_id)
        self._forget(request_id)
        self.num_aborted += 1

    def _forget(self, request_id: str) -> None:
        del self.requests[request_id], self.turns[request_id]
        self.computed.pop(request_id, None)
        self.cached.pop(request_id, None)
        self.past_prefill.discard(request_id)

    def resubmit(self, request_id: str) -> None:
        """As after the death of an attention actor: the client's tokens come along."""
        request = self.requests[request_id]
        self.abort(request_id)
        self.num_aborted -= 1  # it goes on
        self.add(dataclasses.replace(request, output_token_ids=tuple(self.got[request_id])))

    def reset(self) -> None:
        self.scheduler.reset_computed()
        self.computed.clear()
        self.past_prefill.clear()
        self.cache.wipe()
        assert self.scheduler.num_running == 0 and self.pool.num_free == self.pool.num_blocks
        self.scheduler.check_integrity()

    def step(self, abort_in_flight: Sequence[str] = (), fail_in_flight: int = 0) -> None:
        allowed = self._prompt_rows_allowed()
        plan = self.scheduler.schedule()
        self.scheduler.check_integrity()
        self._check(plan, allowed)
        num_prefills = plan.num_rows - len(plan.decodes)
        self.scheduler.pace.begin(self.now_s, len(plan.decodes), num_prefills)
        self.now_s += 0.01 + 0.001 * len(plan.decodes) + 0.004 * num_prefills
        tokens = self._forward(plan)
        self._check_turns(plan)
        for request_id in abort_in_flight:
            self.abort(request_id)
            self.scheduler.check_integrity()
        for chunk in chunks_of(plan):  # nobody else may get what the forward pass writes
            blocks = chunk.sequence.end_block
            assert blocks * self.limits.block_size >= chunk.start + chunk.num_tokens
            self._check_held(chunk)
        if fail_in_flight:
            self._fail(plan.sampling_chunks()[-fail_in_flight:])
        for chunk in chunks_of(plan):
            if not chunk.sequence.failed:
                self.cache.finish(chunk.sequence, chunk.start, chunk.start + chunk.num_tokens)
        events = self.scheduler.finish_step(plan, tokens)
        self.scheduler.check_integrity()
        for chunk in chunks_of(plan):
            self.num_passed += chunk.sequence.first_block
            self._check_held()
        self._take(plan, events)

    def _check_held(self, chunk: ScheduledChunk | None = None) -> None:
        """A sequence holds the blocks of its window, and a chunk's own while it runs."""
        window, size = self.limits.sliding_window, self.limits.block_size
        if window is None:
            return
        if chunk is not None:
            first = max(0, chunk.start - window + 1) // size
            last = (chunk.start + chunk.num_tokens - 1) // size
            assert len(chunk.sequence.block_ids) <= last - first + 1
            return
        for one in self.scheduler._admission.running:
            assert len(one.block_ids) <= window // size + 2

    def _fail(self, chunks: Sequence[ScheduledChunk]) -> None:
        """As when the model gives them no finite logits."""
        bad = [chunk.sequence for chunk in chunks]
        theirs = {block_id for one in bad for block_id in one.block_ids}
        others = [one for one in self.scheduler._admission.running if one not in bad]
        gone = {
            self.cache.known.get(tuple(one.token_ids[: (index + 1) * self.limits.block_size]))
            for one in bad
            for index in range(one.first_block)
        }
        cleared = self.scheduler.fail(bad)
        alone = theirs.difference(*(one.block_ids for one in others))
        if any(one.first_block for one in bad):  # what fell out of their windows is free
            assert set(cleared) == alone | set(self.pool.blank)
            self.cache.forget(block_id for block_id in gone if block_id is not None)
        else:
            assert sorted(cleared) == sorted(alone)
        self.cache.forget(theirs)
        self.cache.clear(cleared)
        for one in bad:
            if one.request_id in self.requests:
                self._forget(one.request_id)
                self.num_failed += 1

    def drain(self) -> None:
        # Each step that only decodes for the pace's sake is followed by one that does not, and
        # that runs a row of who is first among those that run, whom nobody preempts. It is first
        # until it ends or a request before it is admitted, as happens once for each that ends.
        bound = 1 + 2 * self.limits.max_model_len * (1 + len(self.requests)) ** 2
        while self.requests:
            bound -= 1
            assert bound > 0, "no progress"
            self.step()
        assert not self.scheduler.has_work
        assert self.pool.num_free == self.pool.num_blocks
        prefixes = self.scheduler.prefixes
        assert (prefixes.num_queried_tokens, prefixes.num_hit_tokens) == (
            self.num_queried,
            self.num_hits,
        )

    def _prompt_rows_allowed(self) -> int:
        waiting = [one for one in self.requests if one not in self.computed]
        waiting.sort(key=lambda one: self.turns[one])
        places = self.most_running - len(self.computed)
        prompts = sum(not self.got[one] for one in [*self.computed, *waiting[:places]])
        allowed = self.scheduler.pace.max_prefill_rows(len(self.past_prefill), prompts)
        return allowed if prompts else self.limits.max_num_batched_tokens

    def _check(self, plan: StepPlan, allowed: int) -> None:
        chunks = chunks_of(plan)
        ids = [c.sequence.request_id for c in chunks]
        assert plan.num_rows == sum(c.num_tokens for c in chunks)
        assert plan.num_rows <= self.limits.max_num_batched_tokens
        assert bool(plan) == bool(self.requests) == self.scheduler.has_work
        assert len(set(ids)) == len(ids) <= self.limits.max_num_seqs
        assert set(ids) <= set(self.requests)
        # Every decode has its row, unless it gave way to one before it.
        decodes = [c.sequence.request_id for c in plan.decodes]
        assert set(decodes) | (set(plan.preempted) & self.past_prefill) == self.past_prefill
        assert not set(plan.preempted) & set(decodes)
        for victim in plan.preempted:
            back = victim in ids  # it found its blocks with another, and others came in behind it
            assert back or all(self.turns[victim] > self.turns[one] for one in ids)
            del self.computed[victim]
            self.past_prefill.discard(victim)
        for chunk in plan.decodes:
            assert chunk.num_tokens == 1 and chunk.samples
        unread = [c for c in plan.prefills if not self.got[c.sequence.request_id]]
        assert sum(c.num_tokens for c in unread) <= allowed
        self.num_paced += allowed < self.limits.max_num_batched_tokens
        running = self.computed.keys() | set(ids)
        if running and allowed:
            assert min(running, key=lambda r: self.turns[r]) in ids, "the first waits"
        self.num_mixed += bool(plan.decodes and plan.prefills)
        self.num_cut += sum(not c.samples for c in plan.prefills)

    def _check_turns(self, plan: StepPlan) -> None:
        """Nobody is admitted before its turn."""
        ids = {c.sequence.request_id for c in plan.prefills if c.sequence.request_id in self.began}
        waiting = [turn for one, turn in self.turns.items() if one not in self.computed]
        assert not ids or not waiting or max(self.turns[one] for one in ids) < min(waiting)

    def _admit(self, sequence: RunningSequence) -> None:
        """What it begins with must be the longest prefix known at this moment."""
        want = self.cache.longest(sequence.token_ids)
        assert sequence.block_ids[: len(want)] == list(want.values())
        end = max(want, default=-1) + 1
        assert sequence.first_block == min(want, default=end)
        self.num_hits_behind += sequence.first_block > 0
        start = self.computed[sequence.request_id] = end * self.limits.block_size
        if sequence.request_id not in self.cached:
            self.cached[sequence.request_id] = start
            if self.limits.enable_prefix_caching:
                self.num_queried += len(sequence.token_ids)
                self.num_hits += start

    def _forward(self, plan: StepPlan) -> list[tuple[int, TokenLogprobs | None]]:
        written = set[int]()
        self.began.clear()
        for chunk in chunks_of(plan):
            sequence, request_id = chunk.sequence, chunk.sequence.request_id
            if request_id not in self.computed:
                self.began.add(request_id)
                self._admit(sequence)
            assert chunk.start == self.computed[request_id], "rows left out or repeated"
            end = self.computed[request_id] = chunk.start + chunk.num_tokens
            self.cache.allocate(sequence, chunk.start, end)
            slots = self.cache.write(sequence, chunk.start, end)
            assert not slots & written
            written |= slots
            filled = {slot // self.limits.block_size for slot in slots}
            for other in self.scheduler._admission.running:
                assert other is sequence or not filled & set(other.block_ids)
        tokens: list[tuple[int, TokenLogprobs | None]] = []
        for chunk in plan.decodes + plan.prefills:
            read = self.cache.read(chunk.sequence, chunk.start, chunk.start + chunk.num_tokens)
            if chunk.samples:
                tokens.append((next_token(read, chunk.sequence.request.params.seed), None))
        return tokens

    def _take(self, plan: StepPlan, events: list[TokenEvent]) -> None:
        sampling = [c.sequence.request_id for c in plan.decodes + plan.prefills if c.samples]
        assert [e.request_id for e in events] == [r for r in sampling if r in self.requests]
        for event in events:
            request_id = event.request_id
            self.past_prefill.add(request_id)
            first = len(self.got[request_id]) == len(self.requests[request_id].output_token_ids)
            assert event.num_cached_tokens == (self.cached[request_id] if first else 0)
            self.got[request_id] += event.token_ids
            outputs, reason, stop_token_id = self.answers[request_id]
            if event.finish_reason is None:
                assert event.stop_token_id is None
                assert self.got[request_id] == outputs[: len(self.got[request_id])]
                assert len(self.got[request_id]) < len(outputs)
            else:
                assert self.got[request_id] == outputs
                assert (event.finish_reason, event.stop_token_id) == (reason, stop_token_id)
                self._forget(request_id)


def chunks_of(plan: StepPlan) -> list[ScheduledChunk]:
    return plan.decodes + plan.prefills
