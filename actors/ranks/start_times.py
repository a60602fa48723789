"""When an actor came through the phases of its start, as time.time() of its machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StartTimes:
    """0.0 stands for what has not happened (yet); a colocated pipeline never meets."""

    begun_s: float = 0.0  # its process runs our code
    imported_s: float = 0.0
    load_begun_s: float = 0.0
    loaded_s: float = 0.0
    met_s: float = 0.0  # the first group that it was in was formed

    def durations(self) -> dict[str, float]:
        """Seconds of the phases that are over; a spare waits between import and weights."""
        spans = {
            "import_s": (self.begun_s, self.imported_s),
            "weights_s": (self.load_begun_s, self.loaded_s),
            "group_s": (self.loaded_s, self.met_s),
        }
        return {
            name: round(max(0.0, end - begin), 3)
            for name, (begin, end) in spans.items()
            if begin and end
        }


NEVER = StartTimes()
