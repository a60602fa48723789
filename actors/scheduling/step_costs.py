"""What rows cost: seconds of a step by its rows, from the steps lately measured.

Medians of a few steps of about one size, so that a hiccup of the machine moves none of them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from actors.scheduling.sized_costs import SizedCosts, most_rows, size_of

_CALM_STEPS = 15  # remembered of each size
_LATELY = 3  # steps
_FEWEST_ROWS = 8  # fewer rows of prompts vanish in the noise
_FEWEST_WHOLE = 64  # of prompts: the time of a step with fewer says nothing of one with many


class StepCosts:
    """Learns from `observe`; knows nothing at first."""

    def __init__(self) -> None:
        self._num_observed = 0
        self._calm_s: dict[int, deque[float]] = {}  # by size of a step that only decodes
        self._calm_at: dict[int, int] = {}  # what _num_observed was at the last of them
        self._dearer: deque[float] = deque(maxlen=_LATELY)  # seconds / what was seen before
        self._prefills = SizedCosts()  # what prompts add to a step that decodes
        self._whole = SizedCosts()  # steps with prompts, whatever else is in them

    def observe(self, decode_rows: int, prefill_rows: int, seconds: float) -> None:
        """Take in a step that ran."""
        self._num_observed += 1
        if prefill_rows >= _FEWEST_WHOLE:
            self._whole.add(prefill_rows, seconds)
        if not decode_rows:
            return
        if not prefill_rows:
            size = size_of(decode_rows)
            self._calm_s.setdefault(size, deque(maxlen=_CALM_STEPS)).append(seconds)
            self._calm_at[size] = self._num_observed
        elif prefill_rows >= _FEWEST_ROWS:
            calm_s = self.calm_s(decode_rows)
            if calm_s is not None:
                extra_s = max(0.0, seconds - calm_s)
                expected_s = self._prefills.seconds(prefill_rows)
                if expected_s:
                    self._dearer.append(extra_s / expected_s)
                self._prefills.add(prefill_rows, extra_s)

    def calm_age(self, decode_rows: int) -> float:
        """Steps observed since one that only decoded about so many rows; inf if there was none."""
        at = self._calm_at.get(size_of(decode_rows))
        return math.inf if at is None else self._num_observed - at

    def calm_s(self, decode_rows: int) -> float | None:
        """Seconds of a step that only decodes so many rows; None if no such step was seen.

        Of a size not seen yet it is rather too little than too much.
        """
        if not self._calm_s:
            return None
        size = size_of(decode_rows)
        fewer = [one for one in self._calm_s if one <= size]
        if fewer:
            return _undisturbed(self._calm_s[max(fewer)])
        more = min(self._calm_s)
        return _undisturbed(self._calm_s[more]) * decode_rows / most_rows(more)

    def prefill_rows(self, seconds: float) -> int:
        """Rows of prompts that take so long beside decodes, as far as was seen.

        0 if less than the fewest seen; at most twice the most seen. Where steps lately took
        longer than was seen, as they do far into a long prompt, they will with other sizes too.
        """
        if self._dearer:
            seconds /= max(1.0, median(self._dearer))
        return self._prefills.rows(seconds)

    def whole_rows(self, seconds: float) -> int:
        """Rows of prompts with which a whole step takes so long: within what was seen, as above."""
        return self._whole.rows(seconds)


def _undisturbed(times_s: Sequence[float]) -> float:
    """The lower quartile: a step takes longer behind one with prompts, which empties the caches."""
    return sorted(times_s)[(len(times_s) - 1) // 4]
