"""Which blocks of the KV cache are free, and what those that may be used again hold.

Ids only: the tensors live in the cache itself.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class OutOfBlocks(Exception):
    """Fewer blocks are free than were asked for; nothing was taken."""


class BlockPool:
    """Block ids 0..num_blocks-1, each free or held by one owner or more.

    A block whose contents were registered under a key can be found by it and shared, also when
    nobody holds it: it is free then, and keeps its contents until it is allocated anew. Those
    without a key are allocated first, then the one that was held longest ago.
    """

    def __init__(self, num_blocks: int) -> None:
        """Start with every block free. ValueError unless num_blocks >= 1."""
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
        self.num_blocks = num_blocks
        # A stack: the block freed last is the one whose memory is most likely still cached.
        self._blank = list(range(num_blocks - 1, -1, -1))  # free, without a key
        self._kept: OrderedDict[int, None] = OrderedDict()  # free, with one; the oldest first
        self._num_holders = [0] * num_blocks
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._blank) + len(self._kept)

    @property
    def blank(self) -> list[int]:
        """Those of them whose contents cannot be found."""
        return list(self._blank)

    @property
    def usage(self) -> float:
        """Share of the blocks that are held, 0 to 1."""
        return 1.0 - self.num_free / self.num_blocks

    def allocate(self, n: int) -> list[int]:
        """Take `n` free blocks; what was kept in them can no longer be found.

        Raises:
            OutOfBlocks: fewer are free; none is taken.
        """
        assert n >= 0, n
        if n > self.num_free:
            raise OutOfBlocks(f"{n} blocks asked for, {self.num_free} of {self.num_blocks} free")
        first = max(0, len(self._blank) - n)
        taken = self._blank[first:]
        del self._blank[first:]
        while len(taken) < n:
            block_id, _ = self._kept.popitem(last=False)
            self._drop_key(block_id)
            taken.append(block_id)
        for block_id in taken:
            self._num_holders[block_id] = 1
        return taken

    def hold(self, block_ids: Sequence[int]) -> None:
        """Become one more owner of blocks found by their keys."""
        for block_id in block_ids:
            assert self._key_of[block_id] is not None, f"block {block_id} was not found by a key"
            if not self._num_holders[block_id]:
                del self._kept[block_id]
            self._num_holders[block_id] += 1

    def free(self, block_ids: Sequence[int]) -> None:
        """Give one owner's blocks back, in the order of its tokens: the last is reused first.

        A block that is already free is an AssertionError.
        """
        for block_id in reversed(block_ids):
            assert 0 <= block_id < self.num_blocks, f"block {block_id} does not exist"
            assert self._num_holders[block_id], f"block {block_id} is freed twice"
            self._num_holders[block_id] -= 1
            if self._num_holders[block_id]:
                continue
            if self._key_of[block_id] is None:
                self._blank.append(block_id)
            else:
                self._kept[block_id] = None

    def num_holders(self, block_id: int) -> int:
        """How many owners a block has."""
        return self._num_holders[block_id]

    def key_of(self, block_id: int) -> bytes | None:
        """What a block is found by; None if it is not."""
        return self._key_of[block_id]

    def find(self, key: bytes) -> int | None:
        """The block registered under `key`; it stays free if it is, until someone holds it."""
        return self._block_of.get(key)

    def register(self, block_id: int, key: bytes) -> None:
        """Let a held block's contents be found; where another block has the key, nothing changes.

        The contents must be whole, and must not change from now on.
        """
        assert self._num_holders[block_id], f"block {block_id} is free"
        assert self._key_of[block_id] in (None, key), f"block {block_id} has another key"
        if self._block_of.setdefault(key, block_id) == block_id:
            self._key_of[block_id] = key

    def forget(self, block_ids: Iterable[int]) -> None:
        """Let these blocks' contents no longer be found; their owners keep them."""
        for block_id in block_ids:
            self._drop_key(block_id)
            if block_id in self._kept:
                del self._kept[block_id]
                self._blank.append(block_id)

    def forget_all(self) -> None:
        """Let no block's contents be found."""
        self.forget(list(self._block_of.values()))

    def _drop_key(self, block_id: int) -> None:
        key, self._key_of[block_id] = self._key_of[block_id], None
        if key is not None:
            del self._block_of[key]

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Assert that the owners' blocks `held` and the free ones are all blocks. Slow: for tests.

        Each block is held as often as the pool counts, or is free once.
        """
        owners = [list(block_ids) for block_ids in held]
        assert all(len(one) == len(set(one)) for one in owners), f"repeats in one of {owners}"
        count = Counter(block_id for one in owners for block_id in one)
        free = self._blank + list(self._kept)
        assert len(free) == len(set(free)), f"repeats among free {free}"
        assert sorted([*count, *free]) == list(range(self.num_blocks)), (
            f"held {sorted(count)} and free {sorted(free)} "
            f"are not the {self.num_blocks} blocks of the pool"
        )
        counted = {b: n for b, n in enumerate(self._num_holders) if n}
        assert counted == count, f"owners hold {dict(count)}, the pool counts {counted}"
        found = {key: block_id for block_id, key in enumerate(self._key_of) if key is not None}
        assert found == self._block_of, "keys and blocks disagree"
        with_key = set(found.values())
        assert set(self._kept) <= with_key, "a block is kept without a key"
        assert not with_key & set(self._blank), "a block with a key is blank"
