"""Noticing from the router's side that something is wrong: a loss, an end, a silence."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from ray.exceptions import RayError

from actors.patience import forget, within
from actors.pipeline.crew import Crew
from actors.pipeline.spawn import Member
from actors.ranks.actor_stats import ActorStats

_BEAT_S = 1.0

logger = logging.getLogger(__name__)

OnStats = Callable[[Mapping[int, ActorStats]], None]


class Pulse:
    """Watches the actors that serve, and asks them how they are once a second.

    A dead actor ends its `watch` call at once, and a lost peer those of all others. A rank that
    hangs while nobody waits for its messages is only noticed by its silence.
    """

    def __init__(self, crew: Crew, silence_s: float, on_stats: OnStats) -> None:
        """An actor silent for `silence_s` seconds hangs; `on_stats` gets every beat's answers."""
        self._crew = crew
        self._silence_s = silence_s
        self._on_stats = on_stats
        self._silence = asyncio.Event()
        self._watches: dict[tuple[str, int], asyncio.Future[bool]] = {}

    async def trouble(self, epoch: int) -> None:
        """Return when a rank has lost `epoch`, its loop has ended, it has died, or it hangs."""
        silence = asyncio.ensure_future(self._silence.wait())
        waiting: set[asyncio.Future[Any]] = {silence, *self._watch(epoch)}
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if silence in done or not all(_moved_on(watch) for watch in done):
                    return
        finally:
            silence.cancel()

    def _watch(self, epoch: int) -> list[asyncio.Future[bool]]:
        """One call at every actor that serves; one that is under way already is not made again.

        One that has ended would tell at once, and for ever, of what has been dealt with.
        """
        before, self._watches = self._watches, {}
        for member in self._crew.serving.values():
            key = (member.name, epoch)
            watch = before.pop(key, None)
            if watch is None or watch.done():
                watch = asyncio.ensure_future(member.handle.watch.remote(epoch))
                watch.add_done_callback(forget)
            self._watches[key] = watch
        for watch in before.values():
            watch.cancel()
        return list(self._watches.values())

    def calm(self) -> None:
        """Forget the silences so far: who was silent has been dealt with."""
        self._silence.clear()

    async def beat(self) -> None:
        """Ask all serving actors for their stats once a second, for ever."""
        heard_s: dict[str, float] = {}
        while True:
            began_s = time.monotonic()
            members = dict(self._crew.serving)
            answers = await self._answers(members)
            now_s = time.monotonic()
            stats: dict[int, ActorStats] = {}
            for (rank, member), answer in zip(members.items(), answers, strict=True):
                since_s = heard_s.setdefault(member.name, began_s)
                if answer is not None:
                    heard_s[member.name] = now_s
                    stats[rank] = answer
                elif now_s - since_s >= self._silence_s and self._crew.serving.get(rank) is member:
                    self._silence.set()
            heard_s = {member.name: heard_s[member.name] for member in members.values()}
            try:
                self._on_stats(stats)
            except Exception:  # whatever is made of the stats, hangs must be noticed
                logger.exception("the actors' stats could not be taken in")
            await asyncio.sleep(max(0.0, began_s + _BEAT_S - time.monotonic()))

    async def ask(self) -> dict[int, ActorStats]:
        """The stats of all serving actors that answer within a second, now."""
        members = dict(self._crew.serving)
        answers = zip(members, await self._answers(members), strict=True)
        return {rank: answer for rank, answer in answers if answer is not None}

    async def _answers(self, members: Mapping[int, Member]) -> list[ActorStats | None]:
        return await asyncio.gather(*(self._ask(member) for member in members.values()))

    async def _ask(self, member: Member) -> ActorStats | None:
        try:
            answer: ActorStats = await within(_BEAT_S, member.handle.stats.remote())
        except (RayError, TimeoutError):
            return None
        return answer


def _moved_on(watch: asyncio.Future[bool]) -> bool:
    return watch.exception() is None and watch.result()
