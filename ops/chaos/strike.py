"""Who is struck, when and how: seeded choices, then real signals to processes of this machine."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import psutil

from ops.chaos.errors import ChaosError

Signal = Literal["kill", "stop"]
Reach = Literal["one", "two", "all"]

# Most deaths come alone. Two roles at once is what a lost machine does; a whole role is rare, and
# the only case that leaves no copy of an expert or of a KV cache.
_REACH_WEIGHTS: dict[Reach, float] = {"one": 0.7, "two": 0.2, "all": 0.1}
_SHARE_DURING_RECOVERY = 0.25
# Such a strike comes at most so long after the one before: half of them while it is being noticed,
# half at any moment of the recovery.
_DURING_RECOVERY_S = (0.3, 3.0)
_LONGEST_WAIT = 3.0  # in mean waits: a short run shall not spend itself on one
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(frozen=True, slots=True)
class Actor:
    """One entry of /v1/experts: who can be struck."""

    role: str
    pipeline: str
    rank: int
    pid: int
    phase: str

    def __str__(self) -> str:
        return f"{self.role} {self.rank} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class Strike:
    """One moment at which actors were struck. Times are perf_counter()'s."""

    at_s: float
    how: Signal
    reach: Reach
    victims: tuple[Actor, ...]
    over_s: float | None = None  # when every stream moved again; None: not seen

    @property
    def cause(self) -> str:
        """As the gaps name it: "kill:expert", "stop:attention+router", "kill:all expert"."""
        roles = "+".join(sorted({victim.role for victim in self.victims}))
        return f"{self.how}:{'all ' if self.reach == 'all' else ''}{roles}"

    def ended(self, over_s: float) -> Strike:
        """The same, with its recovery over."""
        return replace(self, over_s=over_s)


def actors_of(experts: Any) -> tuple[Actor, ...]:
    """The actors in a body of /v1/experts, in an order that does not depend on pids.

    Raises:
        ChaosError: it is no such body.
    """
    try:
        actors = [
            Actor(
                role=str(entry["role"]),
                pipeline=str(entry.get("pipeline", "")),
                rank=int(entry.get("rank") or 0),
                pid=int(entry["pid"]),
                phase=str(entry.get("phase", "")),
            )
            for entry in experts["actors"]
        ]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ChaosError("/v1/experts does not list actors with role and pid") from error
    return tuple(sorted(actors, key=lambda one: (one.pipeline, one.role, one.rank, one.pid)))


def check_victims(actors: Sequence[Actor], roles: Sequence[str]) -> None:
    """Refuse before anything is struck.

    Raises:
        ChaosError: a role has no actor, or an actor's pid is not a Ray actor here that is ours.
    """
    present = Counter(actor.role for actor in actors)
    for role in roles:
        if not present[role]:
            raise ChaosError(
                f"--kill {role}: the server lists no such actor, only {_said(present)}"
            )
    for actor in actors:
        if actor.role not in roles:
            continue
        if not is_ray_actor(actor.pid):
            raise ChaosError(
                f"{actor} is no Ray actor of this machine: run chaos where the server runs"
            )
        try:
            os.kill(actor.pid, 0)
        except PermissionError as error:
            raise ChaosError(f"{actor} is another user's: no leave to signal it") from error


def is_ray_actor(pid: int) -> bool:
    """Whether that process is alive and has a title that Ray gives its workers."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.cmdline()[0].startswith("ray::")
    except (psutil.Error, LookupError):
        return False


class Dice:
    """All choices of a run, in order, from one seed. They depend on no pid and on no clock."""

    def __init__(
        self, roles: Sequence[str], how: Literal["kill", "stop", "mix"], every_s: float, seed: int
    ) -> None:
        self._roles = tuple(sorted(roles))
        self._signals: tuple[Signal, ...] = ("kill", "stop") if how == "mix" else (how,)
        self._every_s = every_s
        self._rng = random.Random(f"strikes {seed}")

    def wait(self) -> tuple[float, bool]:
        """Seconds from the last strike to the next one, and whether that one waits for no recovery.

        Where it is to wait, it comes at the later of the two.
        """
        if self._rng.random() < _SHARE_DURING_RECOVERY:
            return self._rng.uniform(0.0, self._rng.choice(_DURING_RECOVERY_S)), True
        wait_s = self._rng.expovariate(1.0 / self._every_s)
        return min(wait_s, _LONGEST_WAIT * self._every_s), False

    def choose(self, actors: Sequence[Actor]) -> tuple[Reach, Signal, tuple[Actor, ...]]:
        """Victims among `actors`; none where no actor of the roles is left."""
        rng = self._rng
        reach = rng.choices(list(_REACH_WEIGHTS), list(_REACH_WEIGHTS.values()))[0]
        how = rng.choice(self._signals)
        order = rng.sample(self._roles, len(self._roles))
        places = [rng.random() for _ in order]
        by_role = {role: [one for one in actors if one.role == role] for role in order}
        present = [role for role in order if by_role[role]]
        if not present:
            return reach, how, ()
        if reach == "all":
            return reach, how, tuple(by_role[present[0]])
        if reach == "two" and len(present) < 2:
            reach = "one"
        chosen = present[: 2 if reach == "two" else 1]
        picked = zip(chosen, places, strict=False)
        return reach, how, tuple(by_role[role][int(x * len(by_role[role]))] for role, x in picked)


def strike(victims: Collection[Actor], how: Signal) -> tuple[Actor, ...]:
    """Signal them; returns those that were there to be struck."""
    struck = []
    for victim in victims:
        if not is_ray_actor(victim.pid):  # the death of another one took it along
            continue
        try:
            os.kill(victim.pid, _SIGNALS[how])
        except ProcessLookupError:
            continue
        struck.append(victim)
    return tuple(struck)


def end_frozen(actors: Collection[Actor]) -> tuple[Actor, ...]:
    """Kill those that are still stopped; returns them."""
    frozen = []
    for actor in actors:
        try:
            process = psutil.Process(actor.pid)
            if process.status() == psutil.STATUS_STOPPED and is_ray_actor(actor.pid):
                process.kill()
                frozen.append(actor)
        except psutil.Error:
            continue  # gone
    return tuple(frozen)


def _said(present: Counter[str]) -> str:
    return ", ".join(f"{count} {role}" for role, count in sorted(present.items())) or "none"
