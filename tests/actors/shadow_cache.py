"""A KV cache that remembers whole prefixes, and what may be found in it, by brute force.

A slot holds all tokens up to and including its own, as real keys and values depend on all of
them. Nothing here is hashed or counted: prefixes are compared token by token.
"""

from __future__ import annotations

from collections.abc import Iterable

from actors.scheduling.sequence import RunningSequence

Prefix = tuple[int, ...]


class ShadowCache:
    """The oracle of a scheduler's prefix cache; told of every write and every finished step."""

    def __init__(
        self, num_blocks: int, block_size: int, *, window: int | None = None, shares: bool
    ) -> None:
        self.size = block_size
        self.window = window
        self.shares = shares
        self.slots: list[Prefix | None] = [None] * (num_blocks * block_size)
        self.known: dict[Prefix, int] = {}  # whole blocks: all tokens up to the end -> block id

    def longest(self, tokens: list[int]) -> dict[int, int]:
        """The blocks, by number, that a sequence of these tokens must be admitted with.

        All that its first row sees, for a row as late as can be; at least the last token runs.
        """
        for end in range((len(tokens) - 1) // self.size, 0, -1):
            seen = range(self.first_seen(end * self.size) // self.size, end)
            prefixes = {i: tuple(tokens[: (i + 1) * self.size]) for i in seen}
            if self.shares and all(prefix in self.known for prefix in prefixes.values()):
                return {i: self.known[prefix] for i, prefix in prefixes.items()}
        return {}

    def first_seen(self, position: int) -> int:
        """The first position that the row at `position` attends to."""
        return 0 if self.window is None else max(0, position - self.window + 1)

    def allocate(self, sequence: RunningSequence, start: int, end: int) -> None:
        """Rows start .. end - 1 run: a block whose first slot is among them was taken for them."""
        for position in range(start, end):
            if position % self.size == 0:
                self.forget([self._block(sequence, position // self.size)])

    def write(self, sequence: RunningSequence, start: int, end: int) -> set[int]:
        """Fill the slots of these rows; returns them."""
        written = set()
        for position in range(start, end):
            slot = self._slot(sequence, position)
            self.slots[slot] = tuple(sequence.token_ids[: position + 1])
            written.add(slot)
        return written

    def read(self, sequence: RunningSequence, start: int, end: int) -> list[int]:
        """The tokens up to `end`. AssertionError if a slot that rows from `start` on attend to
        holds another's."""
        for position in range(self.first_seen(start), end):
            found = self.slots[self._slot(sequence, position)]
            assert found == tuple(sequence.token_ids[: position + 1]), (position, found)
        last = self.slots[self._slot(sequence, end - 1)]
        assert last is not None
        return list(last)

    def finish(self, sequence: RunningSequence, start: int, end: int) -> None:
        """A step with these rows is over: the blocks they filled can be found from now on."""
        for index in range(start // self.size, end // self.size):
            prefix = tuple(sequence.token_ids[: (index + 1) * self.size])
            self.known.setdefault(prefix, self._block(sequence, index))

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
        block_id = self._block(sequence, position // self.size)
        return block_id * self.size + position % self.size

    @staticmethod
    def _block(sequence: RunningSequence, index: int) -> int:
        assert index >= sequence.first_block, f"block {index} is gone"
        return sequence.block_ids[index - sequence.first_block]
