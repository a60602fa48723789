"""Sequences that wait to be admitted, in the order in which it is their turn."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from actors.scheduling.sequence import RunningSequence, by_turn


class WaitingQueue:
    """Sorted by turn; turns and request ids are each one's own."""

    def __init__(self) -> None:
        self._in_order: list[RunningSequence] = []
        self._by_id: dict[str, RunningSequence] = {}

    def __len__(self) -> int:
        return len(self._in_order)

    def __iter__(self) -> Iterator[RunningSequence]:
        return iter(self._in_order)

    @property
    def first(self) -> RunningSequence | None:
        """Whose turn it is next."""
        return self._in_order[0] if self._in_order else None

    def add(self, sequence: RunningSequence) -> None:
        """Let it wait among the others, behind those whose turn is before its own."""
        assert sequence.request_id not in self._by_id, sequence.request_id
        insort(self._in_order, sequence, key=by_turn)
        self._by_id[sequence.request_id] = sequence

    def remove(self, request_id: str) -> bool:
        """Let it wait no more; False if it does not wait."""
        sequence = self._by_id.pop(request_id, None)
        if sequence is None:
            return False
        del self._in_order[bisect_left(self._in_order, sequence.turn, key=by_turn)]
        return True

    def check_integrity(self) -> None:
        """Assert that the order is that of turns, and that nobody waits twice. For tests."""
        turns = [one.turn for one in self._in_order]
        assert turns == sorted(set(turns)), f"out of order: {turns}"
        assert {one.request_id: one for one in self._in_order} == self._by_id
