"""Which blocks of the KV cache are free. Ids only: the tensors live in the cache itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class OutOfBlocks(Exception):
    """Fewer blocks are free than were asked for; nothing was taken."""


class BlockPool:
    """Block ids 0..num_blocks-1, each free or held by exactly one owner."""

    def __init__(self, num_blocks: int) -> None:
        """Start with every block free. ValueError unless num_blocks >= 1."""
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
        self.num_blocks = num_blocks
        # A stack: the block freed last is the one whose memory is most likely still cached.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = bytearray(b"\x01" * num_blocks)

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the blocks that are held, 0 to 1."""
        return 1.0 - len(self._free) / self.num_blocks

    def allocate(self, n: int) -> list[int]:
        """Take `n` free blocks. Raises OutOfBlocks, taking nothing, if fewer are free."""
        assert n >= 0, n
        keep = len(self._free) - n
        if keep < 0:
            raise OutOfBlocks(f"{n} blocks asked for, {len(self._free)} of {self.num_blocks} free")
        taken = self._free[keep:]
        del self._free[keep:]
        for block_id in taken:
            self._is_free[block_id] = 0
        return taken

    def free(self, block_ids: Sequence[int]) -> None:
        """Give blocks back. A block that is already free is an AssertionError."""
        for block_id in block_ids:
            assert 0 <= block_id < self.num_blocks, f"block {block_id} does not exist"
            assert not self._is_free[block_id], f"block {block_id} is freed twice"
            self._is_free[block_id] = 1
            self._free.append(block_id)

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Assert that free blocks and the owners' blocks `held` are all blocks, each once."""
        held_ids = [block_id for block_ids in held for block_id in block_ids]
        assert len(held_ids) == len(set(held_ids)), f"blocks with two owners in {held_ids}"
        assert len(self._free) == len(set(self._free)), f"repeats among free {self._free}"
        assert sorted(held_ids + self._free) == list(range(self.num_blocks)), (
            f"held {sorted(held_ids)} and free {sorted(self._free)} "
            f"are not the {self.num_blocks} blocks of the pool"
        )
        flagged = [block_id for block_id in range(self.num_blocks) if self._is_free[block_id]]
        assert flagged == sorted(self._free), "the free list and its flags disagree"
