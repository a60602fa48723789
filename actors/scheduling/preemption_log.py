"""A line of the log for preemptions, but no more than one a second: a full cache makes many."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from actors.log_lines import about

_PAUSE_S = 1.0
_MOST_NAMED = 20

logger = logging.getLogger(__name__)


class PreemptionLog:
    """Gathers what was preempted since the last line. Times are given."""

    def __init__(self) -> None:
        self._not_before_s = float("-inf")
        self._gathered: list[str] = []

    def note(self, now_s: float, request_ids: Sequence[str]) -> None:
        """A step has taken the KV blocks of these requests for others."""
        self._gathered += request_ids
        if now_s < self._not_before_s:
            return
        gathered, self._gathered = self._gathered, []
        self._not_before_s = now_s + _PAUSE_S
        logger.info(
            "the KV cache is full: %d requests were preempted, the last one %s",
            len(gathered),
            gathered[-1],
            extra=about("preemption", count=len(gathered), requests=gathered[-_MOST_NAMED:]),
        )
