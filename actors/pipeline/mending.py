"""Mending a pipeline: call the roll, replace the lost, meet again, note how long it took.

What is decided is in `recovery.py`; here it is carried out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayError

from actors.log_lines import about
from actors.patience import within
from actors.pipeline.crew import Crew
from actors.pipeline.groups import Groups
from actors.pipeline.live_placement import LivePlacement
from actors.pipeline.pulse import Pulse
from actors.pipeline.recovery import Answer, Losses, describe, losses, obstacle
from actors.pipeline.recovery_log import Recovery, RecoveryLog

_MAX_MEETINGS = 5  # that fail in a row although all live; then the pipeline is given up
_LOOK_AGAIN_S = 1.0  # for further deaths, while replacements load
_BREATHER_S = 1.0  # for what was interrupted to go on, before new spares are started
_ROLL_CALL_S = 2.0  # actors answer in milliseconds: who does not by then hangs

logger = logging.getLogger(__name__)


class Mender:
    """Recoveries of one pipeline. On the router's event loop, one at a time."""

    def __init__(
        self, crew: Crew, pulse: Pulse, groups: Groups, placement: LivePlacement | None
    ) -> None:
        self._crew = crew
        self._groups = groups
        self._pulse = pulse
        self._placement = placement
        self.whole = asyncio.Event()  # set while requests can be served
        self.log = RecoveryLog()

    async def mend(self, *, first: bool = False) -> frozenset[int]:
        """Replace whoever is lost, serve as soon as those that are there can; returns the lost.

        Raises:
            RuntimeError: the ranks could not meet although all live.
        """
        at_s, begun = time.time(), time.perf_counter()
        self.whole.clear()
        crew, failed = self._crew, 0
        lost = Losses(frozenset(), frozenset())
        fenced = 0.0
        while True:
            now = losses(await self._call(crew.serving | crew.ready))
            fenced = fenced or time.perf_counter()
            lost = lost.and_also(now)
            for rank in now.ranks:
                crew.retire(rank)
            calm = self.obstacle() is None  # who is left can serve: they come first
            for rank in now.ranks:
                crew.fill(rank, calm=calm)
            self._pulse.calm()
            if not await self._enough():
                continue
            ready = time.perf_counter()
            crew.join(list(crew.ready))
            if self._placement is None:
                break
            try:
                await self._placement.meet()
                break
            except (RayError, TimeoutError) as error:
                failed = 0 if now.ranks else failed + 1
                logger.warning("the ranks could not meet: %s", describe(error))
                if failed == _MAX_MEETINGS:
                    raise RuntimeError(f"the ranks could not meet {failed} times") from error
        self.whole.set()
        if self._placement is not None:
            self._placement.trim()
        if not first:
            self._note(lost, at_s, (begun, fenced, ready, time.perf_counter()))
            crew.keep_spares_in(_BREATHER_S)
        return lost.ranks

    def _note(self, lost: Losses, at_s: float, phases: tuple[float, float, float, float]) -> None:
        begun, fenced, ready, met = phases
        recovery = Recovery(
            cause=lost.cause,
            dead=tuple((self._crew.role_of(rank), rank) for rank in sorted(lost.ranks)),
            at_s=at_s,
            fence_s=fenced - begun,
            start_s=ready - fenced,
            join_s=met - ready,
        )
        self.log.add(recovery)
        logger.warning(
            "recovered from the %s of %s in %.2f s: fenced %.2f, waited %.2f, joined %.2f",
            recovery.cause,
            ", ".join(f"{role} {rank}" for role, rank in recovery.dead) or "a link",
            recovery.total_s,
            recovery.fence_s,
            recovery.start_s,
            recovery.join_s,
            extra=about(
                "recovery",
                cause=recovery.cause,
                lost=[f"{role} {rank}" for role, rank in recovery.dead],
                began=recovery.at_s,
                total_ms=round(recovery.total_s * 1000, 1),
                fence_ms=round(recovery.fence_s * 1000, 1),
                start_ms=round(recovery.start_s * 1000, 1),
                join_ms=round(recovery.join_s * 1000, 1),
            ),
        )

    def obstacle(self) -> str | None:
        """Why those that are there cannot serve."""
        crew = self._crew
        there: dict[str, list[int]] = {"attention": [], "expert": []}
        for rank in crew.serving | crew.ready:
            there[crew.role_of(rank)].append(rank)
        target = None if self._placement is None else self._placement.target
        return obstacle(there["attention"], there["expert"], target)

    async def _enough(self) -> bool:
        """Wait until those that are there can serve; False where one of them died meanwhile."""
        crew, why = self._crew, self.obstacle()
        if why is not None:
            logger.warning(
                "nothing can be served until an actor is back: %s", why, extra=about("not_serving")
            )
        while self.obstacle() is not None:
            try:
                await within(_LOOK_AGAIN_S, crew.changed())
            except TimeoutError:
                if losses(await self._call(crew.serving | crew.ready)).ranks:
                    return False
        return True

    async def _call(self, members: Mapping[int, Any]) -> dict[int, Answer]:
        """Call the roll: make these ranks leave their epoch, and see who answers."""
        calls = [member.handle.suspend.remote(self._groups.newest) for member in members.values()]
        answers = await asyncio.gather(
            *(within(_ROLL_CALL_S, call) for call in calls), return_exceptions=True
        )
        return {rank: _judge(answer) for rank, answer in zip(members, answers, strict=True)}


def _judge(answer: object) -> Answer:
    if isinstance(answer, TimeoutError):
        return "silent"
    return "dead" if isinstance(answer, BaseException) else "alive"
