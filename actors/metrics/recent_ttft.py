"""Time to the first token as it is now: what autoscaling looks at."""

from __future__ import annotations

import threading
from collections import deque

WINDOW_S = 30.0


class RecentTtft:
    """First tokens of the last half minute, and requests that still wait for theirs.

    Safe in any thread. Times are Unix seconds: an arrival by the ingress's clock, the rest by
    this machine's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrived_s: dict[str, float] = {}
        self._firsts: deque[tuple[float, float]] = deque()  # (when, how long it took)

    def arrived(self, request_id: str, arrival_s: float) -> None:
        """A request waits for its first token."""
        with self._lock:
            self._arrived_s[request_id] = arrival_s

    def left(self, request_id: str) -> None:
        """A request has ended, or its client is gone."""
        with self._lock:
            self._arrived_s.pop(request_id, None)

    def token(self, request_id: str, now_s: float) -> None:
        """A request has got a token, perhaps its first."""
        with self._lock:
            arrival_s = self._arrived_s.pop(request_id, None)
            if arrival_s is not None:
                self._firsts.append((now_s, max(0.0, now_s - arrival_s)))

    def value_s(self, now_s: float) -> float:
        """The mean of the window, or how long the oldest has waited in vain, if that is longer."""
        with self._lock:
            while self._firsts and self._firsts[0][0] < now_s - WINDOW_S:
                self._firsts.popleft()
            mean_s = sum(took for _, took in self._firsts) / max(1, len(self._firsts))
            oldest_s = min(self._arrived_s.values(), default=now_s)
        return max(mean_s, now_s - oldest_s)
