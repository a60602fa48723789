"""A pipeline's actors without processes, for tests of the router's side.

The fakes do what a `RankActor` does as far as a router can tell: they load, meet, begin and
leave epochs, move, adopt and hold. The world they share checks whenever something happens that
no rank is asked for an expert that it does not hold. A test may hold a method's calls back,
fail them, kill an actor or make it hang. To be run with `virtual_time.run`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from ray.exceptions import RayActorError

from actors.patience import forget
from actors.ranks.actor_stats import ActorIdentity, ActorStats, Phase
from actors.ranks.rendezvous import Rendezvous
from model.placement import Pair
from tests.actors.fake_calls import HELD, Call, Handle, Mode, task_error
from tests.actors.fake_epochs import FakeEpoch, FakeLoop


class World:  # all fakes of one pipeline, and what happened to them
    def __init__(self) -> None:
        self.actors: list[FakeActor] = []  # as they were started
        self.ended: list[FakeActor] = []  # by the spawner
        self.calls: list[Call] = []  # all there ever were
        self.epochs: dict[int, FakeEpoch] = {}
        self.modes: dict[str, Mode] = {}  # of the actors that are started from now on
        self.reply_s: Callable[[], float] = lambda: 0.0
        self.read_s: Callable[[], float] = lambda: 0.0  # a load or a hold takes so long
        self.lacks: str | None = None  # of the cluster's resources
        self.wrongs: list[str] = []

    @property
    def alive(self) -> list[FakeActor]:
        return [actor for actor in self.actors if actor.alive]

    def called(self, *methods: str) -> list[tuple[str, int]]:
        """Calls of these methods in order: (method, the actor's rank)."""
        return [(c.method, c.actor.rank) for c in self.calls if c.method in methods]

    def check(self) -> None:
        """Note every expert that an attention actor would ask of a rank without it."""
        for actor in self.alive:
            epoch, table = actor.current, actor.placement
            if epoch is None or epoch.broken or table is None or actor.hung:
                continue
            holders = [holders for experts in table.ranks for holders in experts]
            if not all(holders):
                self.wrongs.append(f"placement {table.version}: an expert without a holder")
            for rank in {rank for ranks in holders for rank in ranks}:
                missing = set(table.held_by(rank))
                if rank in epoch.expert:
                    missing -= cast(FakeActor, epoch.met[rank]).held
                if missing:
                    where = f"epoch {epoch.number}, placement {table.version}"
                    self.wrongs.append(f"{actor.name} asks {rank} for {missing} ({where})")


class FakeActor(FakeLoop):
    """One process, as others see it."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__()
        self.world, self.name, self.handle = world, name, Handle(self)
        self.modes = dict(world.modes)
        self.alive, self.rank = True, -1
        self.phase: Phase = "created"
        self.held: set[Pair] = set()
        self.wanted: set[Pair] = set()  # held, or being read
        self.pending: list[Call] = []  # not answered yet
        self.submitted: list[Any] = []

    def call(self, method: str, args: tuple[Any, ...]) -> asyncio.Future[Any]:
        """What `handle.METHOD.remote(*args)` does; a call whose future is given up goes on."""
        call = Call(self, method, args, asyncio.get_running_loop().create_future())
        call.future.add_done_callback(forget)
        self.world.calls.append(call)
        self.pending.append(call)
        mode = self.modes.get(method)
        if method == "load":
            self._become(*args)
        elif method == "hold":
            self.wanted |= set(args[0])
        if not self.alive:
            self._end(call, RayActorError())
        elif isinstance(mode, Exception):
            self._end(call, mode)
        elif not self.hung and mode != HELD:
            self._take(call)
        return call.future

    def waiting(self, method: str) -> list[Call]:
        return [call for call in self.pending if call.method == method]

    def release(self, method: str) -> None:
        """Let the calls that were held back take place."""
        self.modes.pop(method, None)
        for call in self.waiting(method):
            self._take(call)

    def fail(self, method: str, error: Exception) -> None:
        """Let the calls that were held back fail, and all later ones."""
        self.modes[method] = error
        for call in self.waiting(method):
            self._end(call, error)

    def die(self) -> None:
        self.alive = False
        self._vanish()
        for call in list(self.pending):
            self._end(call, RayActorError())

    def hang(self, noticed_after_s: float | None = None) -> None:
        """Answer nothing any more; peers lose it after a while, or never while all rest."""
        self.hung = True
        if noticed_after_s is not None:
            asyncio.get_running_loop().call_later(noticed_after_s, self._vanish)

    def fail_loop(self) -> None:
        """The loop ends with an error while the process lives on."""
        self.phase = "failed"
        self._vanish()
        self.on_left()

    def on_left(self) -> None:
        if self.modes.get("watch") == HELD:
            return
        for call in self.waiting("watch"):
            moved = self.moved_on(*call.args)
            if self.phase in ("failed", "stopped"):
                moved = bool(moved)
            if moved is not None:
                self._answer(call, moved)

    def on_step(self) -> None:
        self.world.check()
        for call in self.waiting("adopt"):
            if self.modes.get("adopt") is None:
                self._answer(call)

    def _vanish(self) -> None:
        for epoch in list(self.world.epochs.values()):
            if epoch.met.get(self.rank) is self:
                epoch.breaks()

    def _take(self, call: Call) -> None:
        getattr(self, f"_{call.method}")(call)

    def _answer(self, call: Call, result: Any = None) -> None:
        _later(self.world.reply_s(), lambda: self._end(call, result))

    def _refuse(self, call: Call, text: str) -> None:
        self._answer(call, task_error(RuntimeError(text)))

    def _end(self, call: Call, result: Any) -> None:
        if call in self.pending:
            self.pending.remove(call)
            if isinstance(result, Exception) and not call.future.done():
                call.future.set_exception(result)
            elif not call.future.done():
                call.future.set_result(result)

    def _after_reading(self, work: Callable[[], None]) -> None:
        _later(self.world.read_s(), lambda: work() if self.alive and not self.hung else None)

    # The methods of a RankActor.

    def _taken(self, call: Call) -> None:
        if self.rank >= 0:
            self._answer(call)

    def _become(self, rank: int, is_attention: bool, _pairs: Sequence[Pair], _calm: bool) -> None:
        self.rank, self.is_attention = rank, is_attention
        for taken in self.waiting("taken"):
            self._answer(taken)

    def _load(self, call: Call) -> None:
        def loaded() -> None:
            self.phase, self.held = "serving", set(call.args[2])
            self.wanted = set(self.held)
            self._answer(call)

        self._after_reading(loaded)

    def _meet(self, call: Call) -> None:
        meeting: Rendezvous = call.args[0]
        epoch = self.world.epochs.setdefault(
            meeting.epoch, FakeEpoch(meeting.epoch, *call.args[1:])
        )
        epoch.met[self.rank] = self

        def too_late() -> None:
            if not epoch.stands and not self.hung:
                self._end(call, task_error(RuntimeError("a rank did not come in time")))

        _later(meeting.timeout_s, too_late)
        actors = [cast(FakeActor, one) for one in epoch.met.values()]
        all_here = len(actors) == len(epoch.attention + epoch.expert)
        if all_here and all(one.alive and not one.hung for one in actors):
            epoch.stands = True
            for one in actors:
                one.offer(epoch)
                for waiting in one.waiting("meet"):
                    if waiting.args[0] == meeting:
                        one._answer(waiting)

    def _suspend(self, call: Call) -> None:
        if self.phase in ("failed", "stopped"):
            self._refuse(call, "the rank has stopped")
        else:
            self.interrupt(*call.args)
            self._answer(call)

    def _watch(self, call: Call) -> None:
        self.on_left()

    def _move(self, call: Call) -> None:
        (self.told,) = call.args
        self._answer(call)
        self.between_steps()

    def _adopt(self, call: Call) -> None:
        self.adopting += call.args
        self.between_steps()

    def _hold(self, call: Call) -> None:
        def held() -> None:
            self.held |= self.wanted & set(call.args[0])
            self._answer(call)

        self._after_reading(held)

    def _keep(self, call: Call) -> None:
        self.wanted = set(call.args[0])
        self.held &= self.wanted
        self.world.check()
        self._answer(call)

    def _submit(self, call: Call) -> None:
        if self.phase != "serving":
            self._refuse(call, f"rank {self.rank}: {self.phase}")
        else:
            self.submitted += call.args[0]
            self._answer(call, len(self.submitted))

    def _unfinished(self, call: Call) -> None:
        self._answer(call, len(self.submitted))

    def _stats(self, call: Call) -> None:
        role = "attention" if self.is_attention else "expert"
        pid = 1000 + self.world.actors.index(self)
        identity = ActorIdentity("p", self.rank, cast(Any, role), pid, "host", "cpu")
        running = len(self.submitted)
        self._answer(call, ActorStats(identity, self.phase, None, 0, 0, 0, num_running=running))

    def _stop(self, call: Call) -> None:
        self.phase = "stopped"
        self.on_left()
        self._answer(call)


def _later(delay_s: float, work: Callable[[], object]) -> None:
    if delay_s > 0:
        asyncio.get_running_loop().call_later(delay_s, work)
    else:
        work()
