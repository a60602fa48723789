"""Compressions that nobody watches, and how many parameters a checkpoint has."""

from __future__ import annotations

from pathlib import Path

from tests.low_rank import tensors_of


class Quiet:
    """Watches nothing; stops the work at a step of the writing if it is told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self._stop_at = stop_at
        self.phases: list[str] = []
        self._steps = 0

    def phase(self, name: str, steps: int) -> None:
        self.phases.append(name)
        self._left = steps

    def advance(self) -> None:
        self._left -= 1
        assert self._left >= 0
        self._steps += self.phases[-1] == "writing"
        if self._steps == self._stop_at:
            raise InterruptedError


def parameters(directory: Path) -> int:
    return sum(tensor.numel() for tensor in tensors_of(directory).values())
