"""A KV cache that remembers whole prefixes, and what may be found in it, by brute force.

A slot holds all tokens up to and including its own, as real keys and values depend on all of
them. Nothing here is hashed or counted: prefixes are compared token by token.
"""

from __future__ import annotations

from collections.abc import Iterable

from actors.sequence import RunningSequence

Prefix = tuple[int, ...]


class ShadowCache:
    """The oracle of a scheduler's prefix cache; told of every write and every finished step."""

    def __init__(self, num_blocks: int, block_size: int, *, shares: bool) -> None:
        self.size = block_size
        self.shares = shares
        self.slots: list[Prefix | None] = [None] * (num_blocks * block_size)
        self.known: dict[Prefix, int] = {}  # whole blocks: all tokens up to the end -> block id

    def longest(self, tokens: list[int]) -> list[int]:
        """The blocks that a sequence of these tokens must be admitted with."""
        blocks: list[int] = []
        while self.shares and (len(blocks) + 1) * self.size < len(tokens):
            block_id = self.known.get(tuple(tokens[: (len(blocks) + 1) * self.size]))
            if block_id is None:
                break
            blocks.append(block_id)
        return blocks

    def allocate(self, sequence: RunningSequence, start: int, end: int) -> None:
        """Rows start .. end - 1 run: a block whose first slot is among them was taken for them."""
        for position in range(start, end):
            if position % self.size == 0:
                self.forget([sequence.block_ids[position // self.size]])

    def write(self, sequence: RunningSequence, start: int, end: int) -> set[int]:
        """Fill the slots of these rows; returns them."""
        written = set()
        for position in range(start, end):
            slot = self._slot(sequence, position)
            self.slots[slot] = tuple(sequence.token_ids[: position + 1])
            written.add(slot)
        return written

    def read(self, sequence: RunningSequence, end: int) -> list[int]:
        """The tokens a row at `end` - 1 attends to. AssertionError if a slot holds another's."""
        for position in range(end):
            found = self.slots[self._slot(sequence, position)]
            assert found == tuple(sequence.token_ids[: position + 1]), (position, found)
        last = self.slots[self._slot(sequence, end - 1)]
        assert last is not None
        return list(last)

    def finish(self, sequence: RunningSequence, start: int, end: int) -> None:
        """A step with these rows is over: the blocks they filled can be found from now on."""
        for index in range(start // self.size, end // self.size):
            prefix = tuple(sequence.token_ids[: (index + 1) * self.size])
            self.known.setdefault(prefix, sequence.block_ids[index])

    def forget(self, block_ids: Iterable[int]) -> None:
        """What these blocks hold is found no more."""
        gone = set(block_ids)
        self.known = {prefix: b for prefix, b in self.known.items() if b not in gone}

    def clear(self, block_ids: Iterable[int]) -> None:
        """These blocks hold nothing any more."""
        for block_id in block_ids:
            for slot in range(block_id * self.size, (block_id + 1) * self.size):
                self.slots[slot] = None

    def wipe(self) -> None:
        """All is lost."""
        self.known.clear()
        self.slots = [None] * len(self.slots)

    def _slot(self, sequence: RunningSequence, position: int) -> int:
        return sequence.block_ids[position // self.size] * self.size + position % self.size
