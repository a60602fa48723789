"""What the server holds after it was struck that it did not hold before. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ops.chaos.census import Census, Held
from ops.chaos.strike import Actor

OWN_KINDS = ("AttentionActor", "ExpertActor", "SpareActor", "Router", "Ingress")
IDLE_KIND = "ray::IDLE"

# A process that lived through it may have met new peers and opened a log or two; a leak adds some
# with every recovery.
MAX_FD_GROWTH = 20
# Ray's log monitor keeps the logs of ended workers open, up to 200 of them.
FD_EXEMPT_KINDS = ("log_monitor.py",)
# Allocators keep what a busier moment needed, and successors touch the cache in another order:
# two runs without any strike differ by some per cent. A lost KV cache or process is far more.
MAX_MEMORY_GROWTH = 0.15
# The object store's file fills with use and is not given back; its limit is 256 MiB.
MAX_SHM_GROWTH_BYTES = 256 << 20

RUNNING = "windrose_num_requests_running"
WAITING = "windrose_num_requests_waiting"
KV_USAGE = "windrose_kv_cache_usage_perc"
_AT_REST = {RUNNING: "requests running", WAITING: "requests waiting", KV_USAGE: "KV cache in use"}


@dataclass(frozen=True, slots=True)
class Holdings:
    """The census of the machine, and what the server says of itself, without load."""

    census: Census
    actors: tuple[Actor, ...]
    metrics: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            **self.census.to_json(),
            "actors": dict(sorted(Counter(actor.role for actor in self.actors).items())),
            "at_rest": {name: self.metrics.get(name) for name in _AT_REST},
        }


def leaks(before: Holdings, after: Holdings) -> list[str]:
    """One sentence for each."""
    return [
        *_processes(before.census.processes, after.census.processes),
        *_files(before.census, after.census),
        *_memory(before.census.processes, after.census.processes),
        *_shared_memory(before.census, after.census),
        *_roles(before.actors, after.actors),
        *_at_rest(after.metrics),
    ]


def _processes(before: Sequence[Held], after: Sequence[Held]) -> list[str]:
    """Ours are counted together: a spare that took over keeps the title it started with."""
    found = []
    ours_before = Counter(one.kind for one in before if is_own(one.kind))
    ours_after = Counter(one.kind for one in after if is_own(one.kind))
    if ours_after.total() > ours_before.total():
        found.append(
            f"{ours_after.total()} processes of actors, {ours_before.total()} before: "
            f"{_said(ours_after)}; before {_said(ours_before)}"
        )
    found += [f"{one.kind} (pid {one.pid}) is still frozen" for one in after if one.frozen]
    return found


def is_own(kind: str) -> bool:
    """Whether it is an actor of Windrose's; Ray starts and keeps workers of its own as it likes."""
    return any(own in kind for own in OWN_KINDS)


def _files(before: Census, after: Census) -> list[str]:
    fds = {(one.pid, one.created_s): one.fds for one in before.processes}
    return [
        f"{one.kind} (pid {one.pid}) has {one.fds} files open, {held} before"
        for one in after.processes
        if one.kind not in FD_EXEMPT_KINDS
        and (held := fds.get((one.pid, one.created_s))) is not None
        and one.fds - held > MAX_FD_GROWTH
    ]


def _memory(before: Sequence[Held], after: Sequence[Held]) -> list[str]:
    """Of all but Ray's idle workers."""
    bytes_before, bytes_after = (
        sum(one.memory_bytes for one in held if one.kind != IDLE_KIND) for held in (before, after)
    )
    if bytes_after <= bytes_before * (1 + MAX_MEMORY_GROWTH):
        return []
    return [f"{bytes_after >> 20} MiB of memory, {bytes_before >> 20} before"]


def _shared_memory(before: Census, after: Census) -> list[str]:
    found = []
    if after.shm_files > before.shm_files:
        found.append(f"{after.shm_files} files in /dev/shm, {before.shm_files} before")
    if after.shm_bytes - before.shm_bytes > MAX_SHM_GROWTH_BYTES:
        found.append(f"{after.shm_bytes >> 20} MiB in /dev/shm, {before.shm_bytes >> 20} before")
    return found


def _roles(before: Sequence[Actor], after: Sequence[Actor]) -> list[str]:
    """Too few are no leak, but what was struck and never replaced is to be said as loudly."""
    roles_before = Counter(actor.role for actor in before)
    roles_after = Counter(actor.role for actor in after)
    return [
        f"{roles_after[role]} {role} actors, {roles_before[role]} before"
        for role in sorted(roles_before | roles_after)
        if roles_after[role] != roles_before[role]
    ]


def _at_rest(metrics: Mapping[str, float]) -> list[str]:
    found = []
    for name, what in _AT_REST.items():
        if name not in metrics:
            found.append(f"/metrics has no {name}")
        elif metrics[name]:
            found.append(f"{what} without load: {name} is {metrics[name]:g}")
    return found


def _said(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"
