"""Strikes at random moments, and watches until the server is whole again after each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from time import perf_counter

from ops.chaos.errors import ChaosError
from ops.chaos.strike import Actor, Dice, Strike, is_ray_actor, strike
from ops.chaos.watch import Watch

RECOVERY_LIMIT_S = 180.0  # as long as a client waits for a byte; then no more strikes
_POLL_S = 0.1
_STEPPING = ("attention", "expert")


class Striker:
    """The strikes of one run."""

    def __init__(
        self,
        watch: Watch,
        actors: Sequence[Actor],
        dice: Dice,
        moved: Callable[[float], bool],
        tell: Callable[[Strike], None],
    ) -> None:
        self.strikes: list[Strike] = []
        self._watch = watch
        self._baseline = Counter(actor.role for actor in actors)
        self._actors = tuple(actors)  # as last seen
        self._dice = dice
        self._moved = moved  # whether all streams in flight at a time have moved since
        self._tell = tell
        self._open: list[int] = []  # indices of strikes that are not over; they end together
        self._whole_s: float | None = None  # since when all actors are there again
        self._struck = asyncio.Event()
        self._calm = asyncio.Event()
        self._calm.set()

    @property
    def victims(self) -> tuple[Actor, ...]:
        """All that were ever struck."""
        return tuple(victim for one in self.strikes for victim in one.victims)

    async def run(self, until_s: float) -> bool:
        """Strike until then, and wait for the last recovery; returns whether all were over."""
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch_recoveries())
            if await self._strike_until(until_s):
                await self._wait_until_calm()
            watching.cancel()
        return not self._open

    async def _strike_until(self, until_s: float) -> bool:
        """Returns whether it was worth going on until then."""
        last_s = perf_counter()
        while True:
            wait_s, in_recovery = self._dice.wait()
            await asyncio.sleep(min(last_s + wait_s, until_s) - perf_counter())
            if not in_recovery and not await self._wait_until_calm():
                return False
            if perf_counter() >= until_s:
                return True
            if not in_recovery:
                await self._look()
            last_s = perf_counter()
            self._strike()

    def _strike(self) -> None:
        already = {victim.pid for index in self._open for victim in self.strikes[index].victims}
        left = [
            actor for actor in self._actors if actor.pid not in already and is_ray_actor(actor.pid)
        ]
        reach, how, chosen = self._dice.choose(left)
        at_s = perf_counter()
        victims = strike(chosen, how)
        if not victims:
            return
        self._open.append(len(self.strikes))
        self.strikes.append(Strike(at_s, how, reach, victims))
        self._whole_s = None
        self._calm.clear()
        self._struck.set()
        self._tell(self.strikes[-1])

    async def _wait_until_calm(self) -> bool:
        try:
            async with asyncio.timeout(RECOVERY_LIMIT_S):
                await self._calm.wait()
        except TimeoutError:
            return False
        return True

    async def _watch_recoveries(self) -> None:
        while True:
            await self._struck.wait()
            if self._whole_s is None:
                struck = [self.strikes[index] for index in self._open]
                if await self._look() and len(struck) == len(self._open):
                    whole = is_whole(struck, self._actors, self._baseline)
                    self._whole_s = perf_counter() if whole else None
            elif self._moved(self._whole_s):
                self._close()
            await asyncio.sleep(_POLL_S)

    async def _look(self) -> bool:
        try:
            self._actors = await self._watch.actors()
        except ChaosError:  # in the middle of it; what was seen last stands
            return False
        return True

    def _close(self) -> None:
        for index in self._open:
            self.strikes[index] = self.strikes[index].ended(perf_counter())
        self._open.clear()
        self._struck.clear()
        self._calm.set()


def is_whole(struck: Sequence[Strike], actors: Sequence[Actor], baseline: Counter[str]) -> bool:
    """Whether none of the struck is listed any more and each role has as many actors as before.

    Spares are not waited for, unless one was struck: work goes on while new ones start.
    """
    victims = [victim for strike in struck for victim in strike.victims]
    if {victim.pid for victim in victims} & {actor.pid for actor in actors}:
        return False
    awaited = {role for role in baseline if role != "spare"}
    awaited |= {victim.role for victim in victims}
    present = Counter(
        actor.role for actor in actors if actor.role not in _STEPPING or actor.phase == "serving"
    )
    return all(present[role] == baseline[role] for role in awaited)
