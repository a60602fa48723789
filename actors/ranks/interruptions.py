"""Which requests a lost peer keeps from going on, and for how long: told with their next tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from actors.messages import TokenEvent


class Interruptions:
    """Of one attention rank, in its loop's thread. Times are Unix seconds."""

    def __init__(self) -> None:
        self._lost_s: float | None = None  # the rank waits for its peers since then
        self._of: dict[str, tuple[float, float]] = {}  # by request: from, to

    def lost(self, now_s: float) -> None:
        """A step cannot be finished: peers are gone."""
        self._lost_s = now_s if self._lost_s is None else self._lost_s

    def over(self, now_s: float, request_ids: Iterable[str]) -> None:
        """Steps run again; these are the requests that were under way."""
        if self._lost_s is None:
            return
        for request_id in request_ids:
            began_s, _ = self._of.get(request_id, (self._lost_s, 0.0))
            self._of[request_id] = (began_s, now_s)
        self._lost_s = None

    def told(self, event: TokenEvent) -> TokenEvent:
        """The event, with the interruption that its request has had since the last one."""
        if not self._of:
            return event
        recovered = self._of.pop(event.request_id, None)
        return event if recovered is None else replace(event, recovered=recovered)

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self._of.pop(request_id, None)
