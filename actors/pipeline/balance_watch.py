"""The balancer at work: fed with what the attention actors count, heard in log and metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from actors.log_lines import about
from actors.pipeline.pipeline_report import BalanceReport, Proposal
from actors.placement.balancer import Decision
from actors.placement.load_window import BalancePolicy, Balancer
from actors.placement.placement_messages import ChangeReport, Rebalance
from actors.ranks.actor_stats import ActorStats
from configs.schema import WindroseConfig

if TYPE_CHECKING:
    from actors.pipeline.live_placement import LivePlacement

_KEPT = 20

logger = logging.getLogger(__name__)


class BalanceWatch:
    """One pipeline's load window and what came of it. On the router's event loop."""

    def __init__(self, config: WindroseConfig) -> None:
        self._mode = config.balance
        policy = BalancePolicy(
            mode=config.balance,
            min_gain=config.balance_min_gain,
            cooldown_s=config.balance_cooldown_s,
            window_s=config.balance_window_s,
        )
        self._balancer = Balancer(policy)
        self._recent: deque[Proposal] = deque(maxlen=_KEPT)
        self._counts: Counter[str] = Counter()
        self._busy: asyncio.Task[None] | None = None

    def load(self) -> list[list[float]]:
        """Recent rows per [layer][expert]."""
        return self._balancer.window.load(time.monotonic())

    def look(self, stats: Mapping[int, ActorStats], live: LivePlacement, *, calm: bool) -> None:
        """Take in one beat's answers; while all is `calm`, see whether the placement is good."""
        if self._busy is not None:
            return  # what is not counted in this beat is in the next
        totals = {
            f"{one.identity.node}/{one.identity.pid}": one.expert_tokens
            for one in stats.values()
            if one.expert_tokens
        }
        self._balancer.window.add(time.monotonic(), totals)
        if calm and self._mode != "off":
            self._busy = asyncio.ensure_future(self._consider(live))

    async def _consider(self, live: LivePlacement) -> None:
        try:
            # In a thread: the search for a better placement may take half a second.
            decision = await asyncio.to_thread(
                self._balancer.consider, time.monotonic(), live.target, live.ranks, live.slots
            )
            if decision is None:
                return
            if decision.placement is None:
                self._note("none", decision)
            elif self._mode == "advise":
                self._note("advised", decision)
            else:
                outcome = await live.change(Rebalance())
                applied = isinstance(outcome, ChangeReport) and outcome.applied
                self._note("applied" if applied else "failed", decision)
        finally:
            self._busy = None

    def _note(self, outcome: str, decision: Decision) -> None:
        self._counts[outcome] += 1
        if outcome == "none" and self._recent and self._recent[-1].outcome == "none":
            self._recent.pop()  # of a row of them the last one is kept
        self._recent.append(Proposal(time.time(), outcome, decision.gain, decision.reason))
        logger.info(
            "balance, %s: %s",
            outcome,
            decision.reason,
            extra=about("balance_proposal", outcome=outcome),
        )

    def report(self) -> BalanceReport:
        """What came of it so far."""
        return BalanceReport(self._mode, tuple(self._recent), dict(self._counts))
