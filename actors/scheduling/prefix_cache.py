"""Sequences that begin alike share KV blocks: finding, taking and offering them. No tensors.

A block is offered once the step that wrote its last token is over, and found by a key of all
tokens up to its end, prompt or output. At least a sequence's last token is left to compute,
and all where every row counts.

With a sliding window a sequence frees blocks while it runs. They can be found until they are
used anew, and only those in the window of the first row to come are needed to go on from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from actors.scheduling.sequence import RunningSequence
from model.block_keys import block_key, extend_keys
from model.block_pool import BlockPool
from model.kv_size import blocks_out_of_sight

_UNKNOWN = -1


class Prefix(NamedTuple):
    """Blocks first_block, first_block + 1, ... of a sequence; those before are not needed."""

    first_block: int
    block_ids: list[int]


class PrefixCache:
    """The blocks of one pool by what they hold. Switched off, it finds and offers nothing."""

    def __init__(
        self, pool: BlockPool, block_size: int, *, window: int | None = None, enabled: bool
    ) -> None:
        self._pool = pool
        self._block_size = block_size
        self._window = window
        self._enabled = enabled
        self.num_queried_tokens = 0  # of sequences as they were first admitted
        self.num_hit_tokens = 0  # of those, found

    def find(self, sequence: RunningSequence) -> Prefix:
        """The blocks that hold the longest known prefix of a waiting sequence; nothing changes."""
        blocks: list[int] = []
        if not self._enabled or sequence.request.pooling == "mean":  # that takes every row
            return Prefix(0, blocks)
        begin = first = end = 0  # of the run of known blocks; of what of such a run is to be used
        keys, token_ids = sequence.block_keys, sequence.token_ids
        for index in range((len(token_ids) - 1) // self._block_size):
            if index == len(keys):  # keys are made as far as they are needed, and once
                extend_keys(keys, token_ids, self._block_size, index + 1)
            block_id = self._pool.find(keys[index])
            if block_id is None and self._window is None:
                break
            blocks.append(_UNKNOWN if block_id is None else block_id)
            if block_id is None:
                begin = index + 1
            elif begin <= (unseen := self._num_unseen(index + 1)):
                first, end = unseen, index + 1
        return Prefix(first, blocks[first:end])

    def _num_unseen(self, num_blocks: int) -> int:
        """How many of so many computed blocks no row to come sees."""
        return blocks_out_of_sight(self._window, num_blocks * self._block_size, self._block_size)

    def num_shared(self, block_ids: Sequence[int]) -> int:
        """How many of these blocks cost no free one, because somebody holds them."""
        return sum(1 for block_id in block_ids if self._pool.num_holders(block_id))

    def begin(self, sequence: RunningSequence, found: Prefix) -> None:
        """Admit a sequence with the blocks just found for it."""
        self._pool.hold(found.block_ids)
        sequence.first_block, sequence.block_ids = found.first_block, list(found.block_ids)
        sequence.num_offered = sequence.end_block
        sequence.num_computed = sequence.end_block * self._block_size
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed
            if self._enabled:
                self.num_queried_tokens += len(sequence.token_ids)
                self.num_hit_tokens += sequence.num_computed

    def offer(self, sequence: RunningSequence) -> None:
        """Let the blocks that a finished step has filled be found."""
        num_full = sequence.num_computed // self._block_size
        if num_full == sequence.num_offered or not self._enabled or sequence.failed:
            return
        keys = sequence.block_keys
        extend_keys(keys, sequence.token_ids, self._block_size, num_full)
        for index in range(sequence.num_offered, num_full):
            self._pool.register(sequence.block_ids[index - sequence.first_block], keys[index])
        sequence.num_offered = num_full

    def discard(self, sequences: Sequence[RunningSequence]) -> list[int]:
        """Forget blocks that may hold NaN or infinity; returns those that nobody else holds.

        What another sequence holds too it still reads: if it is bad, that one fails as well.
        Where blocks fell out of the window of one of them, those are among the free ones.
        """
        held = Counter(block_id for one in sequences for block_id in one.block_ids)
        self._pool.forget(held)
        bad = [b for b, count in held.items() if count == self._pool.num_holders(b)]
        if any(one.first_block for one in sequences):
            for one in sequences:
                found = map(self._pool.find, one.block_keys[: one.first_block])
                self._pool.forget([b for b in found if b is not None])
            bad += self._pool.blank
        return bad

    def check_integrity(self, running: Sequence[RunningSequence]) -> None:
        """Assert that what is found of running sequences is what they hold. For tests."""
        size = self._block_size
        for one in running:
            key, computed = b"", one.num_computed // size
            for index in range(one.first_block):
                key = block_key(key, one.token_ids[index * size : (index + 1) * size])
            for index, block_id in enumerate(one.block_ids, one.first_block):
                if index >= computed:
                    assert self._pool.key_of(block_id) is None, "offered before it was computed"
                    continue
                key = block_key(key, one.token_ids[index * size : (index + 1) * size])
                assert self._pool.key_of(block_id) in (None, key), "offered as something else"
                assert index >= len(one.block_keys) or one.block_keys[index] == key
