"""Who runs and who waits: places and KV blocks given by turn, and taken back from the last."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Sequence

from actors.scheduling.prefix_cache import PrefixCache
from actors.scheduling.scheduler_limits import SchedulerLimits
from actors.scheduling.sequence import RunningSequence, by_turn
from actors.scheduling.waiting_queue import WaitingQueue
from model.block_pool import BlockPool
from model.kv_size import blocks_out_of_sight


class Admission:
    """The running sequences, in turn, and the waiting ones.

    Whoever is admitted is first of those that wait, whoever is preempted last of those that run.
    """

    def __init__(self, limits: SchedulerLimits, pool: BlockPool, prefixes: PrefixCache) -> None:
        self._limits = limits
        self._pool = pool
        self._prefixes = prefixes
        # No more than a step has rows: so decodes leave one to the first prefill.
        self._most = min(limits.max_num_seqs, limits.max_num_batched_tokens)
        self.running: list[RunningSequence] = []
        self.waiting = WaitingQueue()
        self.num_preemptions = 0

    @property
    def num_places(self) -> int:
        """How many more can run, blocks aside."""
        return self._most - len(self.running)

    def admit(self, sequence: RunningSequence) -> bool:
        """Let the first of those that wait run, if there is a place, and its blocks will be."""
        if not self.num_places:
            return False
        cached = self._prefixes.find(sequence)
        if not self._has_blocks(sequence, cached.block_ids):
            return False
        self.waiting.remove(sequence.request_id)
        insort(self.running, sequence, key=by_turn)
        self._prefixes.begin(sequence, cached)
        return True

    def make_way(self, sequence: RunningSequence) -> list[str]:
        """Preempt running sequences of lower priority, if that lets a waiting one run.

        Returns their request ids.
        """
        lower = [one for one in self.running if one.priority > sequence.priority]
        if not lower:
            return []
        cached = self._prefixes.find(sequence)
        held = Counter(block_id for one in lower for block_id in one.block_ids)
        freed = {b for b, count in held.items() if count == self._pool.num_holders(b)}
        kept = [block_id for block_id in cached.block_ids if block_id not in freed]
        if not self._has_blocks(sequence, kept, len(freed)):
            return []
        preempted = []
        while lower and not (self.num_places and self._has_blocks(sequence, cached.block_ids)):
            lower.pop()
            preempted.append(self.preempt_last())
        return preempted

    def _has_blocks(
        self, sequence: RunningSequence, cached: Sequence[int], num_freed: int = 0
    ) -> bool:
        # Room for all its tokens and the next one, and for what those before it lack, or a block
        # to spare for each: they grow, and what they lack they take back from this one, whose
        # prefill was then for nothing. Simulated on full pools, rows computed / rows needed
        # are 1.0-1.3 so, 1.1-1.6 without the spare blocks, 2.2-3.5 when only the next chunk
        # has to fit; the steps that it costs are 1-5 % more. With nothing running it always
        # holds, so who is first gets in sooner or later. A cached block costs nothing only
        # while somebody holds it: else it is one of the free ones, and now is no longer.
        limits = self._limits
        before = [one for one in self.running if one.turn < sequence.turn]
        spare = sum(max(1, one.num_blocks_to_come(limits)) for one in before)
        free = self._pool.num_free + num_freed + self._prefixes.num_shared(cached)
        # With a sliding window a pool may be smaller than a full chunk and what it sees: chunks
        # are cut then.
        needed = min(sequence.num_blocks_to_come(limits), self._pool.num_blocks)
        return free >= needed + spare

    def preempt_last(self) -> str:
        """Take place and blocks from the last that runs; returns its request id."""
        sequence = self._requeue_last()
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        return sequence.request_id

    def requeue_all(self) -> None:
        """Let all that run wait again, with nothing computed."""
        while self.running:
            self._requeue_last()

    def _requeue_last(self) -> RunningSequence:
        sequence = self.running.pop()
        self._release(sequence)
        sequence.num_computed = sequence.num_offered = 0
        sequence.decoding = False
        self.waiting.add(sequence)
        return sequence

    def drop(self, sequence: RunningSequence) -> None:
        """Forget one that runs and free its blocks."""
        self.running.remove(sequence)
        self._release(sequence)

    def drop_ended(self) -> None:
        """Forget all that ended while they ran, and free their blocks, in one pass."""
        for sequence in self.running:
            if sequence.ended:
                self._release(sequence)
        self.running = [one for one in self.running if not one.ended]

    def free_unseen(self, sequence: RunningSequence) -> None:
        """Free the blocks that fell out of its sliding window: no row to come sees them."""
        limits = self._limits
        first = blocks_out_of_sight(limits.sliding_window, sequence.num_computed, limits.block_size)
        count = first - sequence.first_block
        if count > 0:
            self._pool.free(sequence.block_ids[:count])
            del sequence.block_ids[:count]
            sequence.first_block = first

    def _release(self, sequence: RunningSequence) -> None:
        self._pool.free(sequence.block_ids)
        sequence.block_ids, sequence.first_block = [], 0

    def check_integrity(self) -> None:
        """Assert what holds between any two calls. Slow: for tests."""
        self.waiting.check_integrity()
        self._pool.check_integrity(one.block_ids for one in self.running)
        self._prefixes.check_integrity(self.running)
        turns = [one.turn for one in self.running]
        assert turns == sorted(turns), f"not by turn: {turns}"
        assert len(turns) <= min(self._limits.max_num_seqs, self._limits.max_num_batched_tokens)
        assert not any(one.block_ids or one.num_computed or one.decoding for one in self.waiting)
        for sequence in self.running:
            sequence.check_integrity(self._limits.block_size)
