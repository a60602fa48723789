"""The recent load of the experts, and when the balancer looks at it. Times are arguments."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from actors.placement.balancer import Decision, decide
from model.placement import ExpertPlacement

_LOOKS_PER_WINDOW = 10


@dataclass(frozen=True, slots=True)
class BalancePolicy:
    """When the balancer proposes another placement, and what for.

    `min_gain`: least share of the busiest ranks' rows to be saved. `min_rows`: least number of
    choices of experts that each layer must have seen in the window.
    """

    mode: Literal["off", "advise", "auto"]
    min_gain: float = 0.1
    cooldown_s: float = 60.0
    window_s: float = 60.0
    min_rows: int = 1000


class LoadWindow:
    """Rows per layer and expert in the last `window_s` seconds, from counters that only grow."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._last: dict[str, np.ndarray] = {}
        self._added: deque[tuple[float, np.ndarray]] = deque()  # [L, E] each

    def add(self, now_s: float, totals_by_actor: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Take in what some attention actors have counted since they began.

        One that is new, or whose counters fell because it restarted, began at 0. What one
        counted while it was not heard counts when it is heard again.
        """
        for actor, totals in totals_by_actor.items():
            total_LE = np.array(totals, np.int64)
            last_LE = self._last.get(actor)
            began = last_LE is None or bool((total_LE < last_LE).any())
            grown_LE = total_LE if began or last_LE is None else total_LE - last_LE
            self._last[actor] = total_LE
            self._added.append((now_s, grown_LE))
        self._forget(now_s)

    def load(self, now_s: float) -> list[list[float]]:
        """Rows per [layer][expert] in the window, over all actors; empty before the first add."""
        self._forget(now_s)
        if not self._last:
            return []
        sum_LE = np.zeros_like(next(iter(self._last.values())))
        for _, grown_LE in self._added:
            sum_LE += grown_LE
        load_LE: list[list[float]] = sum_LE.astype(np.float64).tolist()
        return load_LE

    def _forget(self, now_s: float) -> None:
        while self._added and self._added[0][0] <= now_s - self._window_s:
            self._added.popleft()


class Balancer:
    """One pipeline's window and policy: says now and then what should be changed."""

    def __init__(self, policy: BalancePolicy) -> None:
        self._policy = policy
        self._next_s = -math.inf
        self.window = LoadWindow(policy.window_s)

    def consider(
        self, now_s: float, placement: ExpertPlacement, ranks: Sequence[int], slots: int
    ) -> Decision | None:
        """A decision, or None: switched off, too little load, or too soon after the last one.

        Too soon is the cool-down after a change that was proposed, followed or not, and a tenth
        of the window after a decision to let all stay. A search may take half a second.
        """
        if self._policy.mode == "off" or now_s < self._next_s:
            return None
        load_LE = self.window.load(now_s)
        if min(map(sum, load_LE), default=0.0) < self._policy.min_rows:
            return None
        decision = decide(load_LE, placement, ranks, slots, self._policy.min_gain)
        pause_s = self._policy.window_s / _LOOKS_PER_WINDOW
        self._next_s = now_s + (pause_s if decision.placement is None else self._policy.cooldown_s)
        return decision
