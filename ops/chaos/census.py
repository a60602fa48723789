"""What the server holds of this machine: its processes, their memory, files and shared memory."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ops.chaos.errors import ChaosError

_SHM = Path("/dev/shm")
# Who names files there: Ray, its object store, torch, Python's shared_memory, NCCL.
_SHM_NAMES = re.compile("ray|plasma|torch|psm_|nccl|windrose", re.IGNORECASE)
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's are


@dataclass(frozen=True, slots=True)
class Held:
    """One process and what it holds. Memory is its own (USS) where that may be read, else RSS."""

    pid: int
    created_s: float
    kind: str
    fds: int
    memory_bytes: int
    frozen: bool


@dataclass(frozen=True, slots=True)
class Census:
    """Everything at one moment."""

    processes: tuple[Held, ...]
    shm_files: int
    shm_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Sums, and the processes by kind."""
        kinds = Counter(one.kind for one in self.processes)
        return {
            "processes": dict(sorted(kinds.items())),
            "fds": sum(one.fds for one in self.processes),
            "memory_bytes": sum(one.memory_bytes for one in self.processes),
            "shm_files": self.shm_files,
            "shm_bytes": self.shm_bytes,
        }


def roots_of(pids: Iterable[int]) -> tuple[psutil.Process, ...]:
    """The processes below which all of the server is: the parents (raylets) of its actors.

    A raylet that `windrose serve` started stands for that: orphans of the raylet are its children.

    Raises:
        ChaosError: none of the actors is alive.
    """
    roots: dict[int, psutil.Process] = {}
    for pid in pids:
        try:
            raylet = psutil.Process(pid).parent()
            above = raylet.parent() if raylet is not None else None
            if above is not None and _is_windrose_serve(above.cmdline()):
                raylet = above
        except psutil.Error:
            continue
        if raylet is not None:
            roots[raylet.pid] = raylet
    if not roots:
        raise ChaosError("no actor of the server is a process of this machine")
    return tuple(roots.values())


def count(roots: Iterable[psutil.Process]) -> Census:
    """Look at the roots and everything below them. Takes some 5 ms a process."""
    held: dict[int, Held] = {}
    shm: dict[tuple[int, int], int] = {}
    for process in _descendants(roots):
        try:
            held[process.pid] = _held(process)
        except psutil.Error:
            continue  # ended meanwhile
        shm |= dict(_open_shm(process.pid))
    shm |= dict(_left_shm())
    return Census(tuple(held.values()), len(shm), sum(shm.values()))


def kind_of(cmdline: list[str], name: str) -> str:
    """What a process is: a Ray worker's title without its method, a script, or a program's name."""
    if not cmdline:
        return name or "zombie"
    if cmdline[0].startswith("ray::"):
        return cmdline[0].split(".")[0]
    scripts = [part for part in cmdline[1:] if part.endswith(".py")]
    if scripts:
        return Path(scripts[0]).name
    return Path(cmdline[0]).name


def _is_windrose_serve(cmdline: list[str]) -> bool:
    return "serve" in cmdline and any(
        part == "ops.cli" or Path(part).name == "windrose" for part in cmdline
    )


def _descendants(roots: Iterable[psutil.Process]) -> Iterator[psutil.Process]:
    for root in roots:
        try:
            yield root
            yield from root.children(recursive=True)
        except psutil.NoSuchProcess:
            continue


def _held(process: psutil.Process) -> Held:
    status = process.status()
    if status == psutil.STATUS_ZOMBIE:
        return Held(process.pid, process.create_time(), "zombie", 0, 0, False)
    try:
        memory_bytes = int(process.memory_full_info().uss)
    except psutil.AccessDenied:
        memory_bytes = int(process.memory_info().rss)
    try:
        fds = process.num_fds()
    except psutil.AccessDenied:
        fds = 0
    return Held(
        pid=process.pid,
        created_s=process.create_time(),
        kind=kind_of(process.cmdline(), process.name()),
        fds=fds,
        memory_bytes=memory_bytes,
        frozen=status == psutil.STATUS_STOPPED,
    )


def _open_shm(pid: int) -> Iterator[tuple[tuple[int, int], int]]:
    """Files in /dev/shm that it has open, those already unlinked too."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for number in numbers:
        path = f"/proc/{pid}/fd/{number}"
        try:
            if os.readlink(path).startswith(f"{_SHM}/"):
                status = os.stat(path)
                yield (status.st_dev, status.st_ino), status.st_blocks * _BLOCK_BYTES
        except OSError:
            continue  # closed meanwhile


def _left_shm() -> Iterator[tuple[tuple[int, int], int]]:
    for path in named_shm():
        try:
            status = path.stat()
        except OSError:
            continue  # removed meanwhile
        yield (status.st_dev, status.st_ino), status.st_blocks * _BLOCK_BYTES


def named_shm() -> set[Path]:
    """Files in /dev/shm that look like Ray's or ours: a dead process leaves its there, closed."""
    if not _SHM.is_dir():
        return set()
    return {path for path in _SHM.iterdir() if _SHM_NAMES.search(path.name)}
