"""Who has which rank: the actors that serve, those loaded and waiting to join, and the spares.

A rank that is to be filled is tried again and again, ever more slowly: what is wrong (a corrupt
shard, no resources) may be mended meanwhile, and those that are left go on serving.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ray.exceptions import RayError

from actors.log_lines import about
from actors.patience import within
from actors.pipeline.bundles import Role
from actors.pipeline.recovery import describe, retry_delay_s
from actors.pipeline.spawn import Member, Spawner
from model.placement import Pair

_SPARE_LIFE_S = 10.0  # one that lives for less is not replaced any sooner
_STARTED_S = 10.0  # one that has not answered for so long may have no place
_FROZEN_S = 30.0  # of no answer; spares stand back behind all else that their machines have to do

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why the last try to fill a rank failed, and how many have."""

    error: Exception
    failures: int

    def __str__(self) -> str:
        """One line."""
        return describe(self.error)


class Crew:
    """The actors of one pipeline. Every method runs on the router's event loop."""

    def __init__(
        self,
        spawner: Spawner,
        num_attention: int,
        num_spares: int,
        load_timeout_s: float,
        share: Callable[[int], Sequence[Pair]],
    ) -> None:
        """`share(rank)`: what an expert rank is to hold."""
        self._spawner = spawner
        self._num_attention = num_attention
        self._num_spares = num_spares
        self._load_timeout_s = load_timeout_s
        self._share = share
        self._waiting: set[asyncio.Future[None]] = set()
        self._filling: dict[int, asyncio.Task[None]] = {}
        self._spares: dict[str, Member] = {}
        self._up: set[str] = set()  # names of those that have answered: Ray has found them a place
        self._begun_s: dict[str, float] = {}  # when each of the spares was asked for
        self._guards: set[asyncio.Task[None]] = set()
        self._ended = False
        self.serving: dict[int, Member] = {}  # in the epoch
        self.ready: dict[int, Member] = {}  # loaded, not in the epoch yet
        self.faults: dict[int, Fault] = {}  # ranks that cannot be filled at present

    def role_of(self, rank: int) -> Role:
        """Attention ranks come first, for life."""
        return "attention" if rank < self._num_attention else "expert"

    @property
    def attention(self) -> dict[int, Member]:
        """Serving attention actors, by rank."""
        return {r: self.serving[r] for r in sorted(self.serving) if r < self._num_attention}

    @property
    def expert(self) -> dict[int, Member]:
        """Serving expert actors, by rank."""
        return {r: self.serving[r] for r in sorted(self.serving) if r >= self._num_attention}

    @property
    def filling(self) -> list[int]:
        """Ranks whose next actor is still loading, or cannot."""
        return sorted(self._filling)

    @property
    def num_spares(self) -> int:
        """Spares that wait; not those that are being started."""
        return len(self._up)

    def fill(self, rank: int, *, calm: bool = False) -> None:
        """Get an actor for a rank, a spare if there is one; it is in `ready` once it is loaded.

        With `calm` it is started and loaded behind those that serve.
        """
        self._filling[rank] = asyncio.get_running_loop().create_task(self._fill(rank, calm))

    async def _fill(self, rank: int, calm: bool) -> None:
        failures = 0
        while True:
            role = self.role_of(rank)
            spare, answers_in_s = self._take_spare(role)
            member = spare or self._spawner.spawn(role, calm=calm)
            is_attention = role == "attention"
            pairs = () if is_attention else self._share(rank)
            try:
                load = member.handle.load.remote(rank, is_attention, pairs, calm)
                if spare is not None:  # nobody has asked it anything since it came up
                    await within(answers_in_s, spare.handle.stats.remote())
                await within(self._load_timeout_s, load)
                break
            except asyncio.CancelledError:
                self._spawner.end(member)
                raise
            except (RayError, TimeoutError) as error:
                self._spawner.end(member)
                failures += 1
                self.faults[rank] = fault = Fault(error, failures)
                logger.error(
                    "no actor for %s rank %d: %s",
                    self.role_of(rank),
                    rank,
                    fault,
                    extra=about("no_actor", role=self.role_of(rank), lost_rank=rank),
                )
                self._tell()
            await asyncio.sleep(retry_delay_s(failures))
        self.faults.pop(rank, None)
        del self._filling[rank]
        self.ready[rank] = member
        self._tell()

    async def shortage(self, count: int) -> str | None:
        """What the cluster lacks for so many more expert actors, in one phrase; or None."""
        fit = sum("expert" in self._spares[name].roles for name in self._up)
        return await asyncio.to_thread(self._spawner.shortage, count - fit)

    def changed(self) -> asyncio.Future[None]:
        """Done when a rank has got its actor, or failed to, from this call on.

        No coroutine: one that is started as a task would miss what changes before its first turn.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    def _tell(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def join(self, ranks: Iterable[int]) -> None:
        """These, which are ready, serve from now on."""
        for rank in ranks:
            self.serving[rank] = self.ready.pop(rank)

    def retire(self, rank: int) -> None:
        """Kill a rank's actor and have none in its place."""
        member = self.serving.pop(rank, None) or self.ready.pop(rank, None)
        if member is not None:
            self._spawner.end(member)
        task = self._filling.pop(rank, None)
        if task is not None:
            task.cancel()
        self.faults.pop(rank, None)

    def keep_spares(self) -> None:
        """Start as many spares as are missing."""
        while not self._ended and len(self._spares) < self._num_spares:
            member = self._spawner.spawn("spare", calm=True)
            self._spares[member.name] = member
            self._begun_s[member.name] = asyncio.get_running_loop().time()
            guard = asyncio.get_running_loop().create_task(self._guard(member))
            self._guards.add(guard)
            guard.add_done_callback(self._guards.discard)

    def keep_spares_in(self, delay_s: float) -> None:
        """As `keep_spares`, later: starting one takes the event loop's time and the machine's."""
        asyncio.get_running_loop().call_later(delay_s, self.keep_spares)

    async def _guard(self, spare: Member) -> None:
        """Replace a spare that dies before it is needed; not as fast as it may die."""
        begun_s = asyncio.get_running_loop().time()
        try:
            await spare.handle.stats.remote()
            if spare.name in self._spares:
                self._up.add(spare.name)
            await spare.handle.taken.remote()
        except RayError:
            if self._forget_spare(spare.name) is None:
                return
            logger.warning("a spare actor died; another is started")
            self._spawner.end(spare)
            lived_s = asyncio.get_running_loop().time() - begun_s
            await asyncio.sleep(max(0.0, _SPARE_LIFE_S - lived_s))
            self.keep_spares()

    def _take_spare(self, role: Role) -> tuple[Member | None, float]:
        """One that can have this role; of those, one that can have the fewest others.

        And within how many seconds it must answer. One that should be up and is not may never be:
        where a new actor would have a place, that is started instead.
        """
        fit = [spare for spare in self._spares.values() if role in spare.roles]
        up = [spare for spare in fit if spare.name in self._up]
        late_s = asyncio.get_running_loop().time() - _STARTED_S
        soon = [spare for spare in fit if self._begun_s[spare.name] > late_s]
        has_bundle = self._spawner.has_bundle(role)
        if not up and not soon and (not fit or has_bundle):
            return None, 0.0
        taken = min(up or soon or fit, key=lambda spare: len(spare.roles))
        self._forget_spare(taken.name)
        return taken, _FROZEN_S if up or not has_bundle else _STARTED_S

    def _forget_spare(self, name: str) -> Member | None:
        self._up.discard(name)
        self._begun_s.pop(name, None)
        return self._spares.pop(name, None)

    def end(self) -> None:
        """Kill every actor."""
        self._ended = True
        for task in [*self._filling.values(), *self._guards]:
            task.cancel()
        members = [*self.serving.values(), *self.ready.values(), *self._spares.values()]
        self.serving, self.ready, self._spares = {}, {}, {}
        self._up.clear()
        self._begun_s.clear()
        for member in members:
            self._spawner.end(member)
