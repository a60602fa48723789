"""What a run is asked for and what it finds; plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ops.chaos.verdict import Tally


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for."""

    url: str
    duration_s: float
    kill: tuple[str, ...]  # roles
    every_s: float
    signal: Literal["kill", "stop", "mix"]
    seed: int
    streams: int
    max_tokens: int
    settle_s: float
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a run found. Mappings are JSON values, `leaks` are sentences."""

    settings: Settings
    tally: Tally
    calm: dict[str, int]
    strikes: dict[str, int]  # by cause
    unrecovered: int
    gaps: dict[str, dict[str, Any]]
    recoveries: dict[str, Any]
    health_down_s: dict[str, float]
    healthy: bool
    leaks: tuple[str, ...]
    held: dict[str, Any]  # before and after

    @property
    def passed(self) -> bool:
        """Nothing failed, changed, leaked or stayed broken; and something was struck at all."""
        return (
            self.tally.requests > 0
            and self.tally.failed == 0
            and self.tally.changed == 0
            and bool(self.strikes)
            and self.unrecovered == 0
            and self.healthy
            and not self.leaks
        )
