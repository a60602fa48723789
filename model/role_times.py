"""Where the time of a rank's steps went: the same three phases for both roles."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RoleTimes:
    """Seconds since the rank started, of this process's clock; on a GPU, those of the host.

    wait: for another rank's rows or sums. compute: the role's own work. communication: packing,
    posting and unpacking messages, which is this rank's work too. What lies between two steps is
    in none of them.
    """

    wait_s: float = 0.0
    compute_s: float = 0.0
    communication_s: float = 0.0
    steps: int = 0
    rows: int = 0  # of an expert rank: over all layers
    sent_bytes: int = 0  # of the messages that carry rows and sums

    @property
    def away_s(self) -> float:
        """Seconds that were not compute."""
        return self.wait_s + self.communication_s

    @property
    def busy_s(self) -> float:
        """Seconds in which nobody else was waited for."""
        return self.compute_s + self.communication_s
