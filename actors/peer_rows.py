"""What the other attention ranks bring to a step, told apart from its number of rows alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

# More than between two steps of a rank that only decode (`step_pace.py`): one is among them.
_STEPS = 48


class PeerRows:
    """The rows of the others' last steps.

    A rank that decodes brings a row for each stream to every step: so the least that it has
    brought for a while are decodes, and what is beyond them now are rows of prompts.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[int, ...]] = deque(maxlen=_STEPS)
        self.decodes = 0
        self.prefills = 0

    def see(self, rows: Sequence[int]) -> None:
        """Take in what each of the others brings to the step that begins."""
        if self._seen and len(self._seen[-1]) != len(rows):
            self._seen.clear()  # a rank came or went
        self._seen.append(tuple(rows))
        known = len(self._seen) == _STEPS
        decodes = [min(column) if known else 0 for column in zip(*self._seen)]
        self.decodes = sum(decodes)
        self.prefills = sum(rows) - self.decodes
