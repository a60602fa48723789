"""Processes that stand for ranks: each runs functions it is sent by name, one after another."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

Job = tuple[Callable[..., Any], tuple[Any, ...]]


def _work(connection: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        job: Job | None = connection.recv()
        if job is None:
            return
        function, arguments = job
        try:
            answer = (True, function(*arguments))
        except Exception as error:
            answer = (False, f"{type(error).__name__}: {error}")
        connection.send(answer)


class RankProcesses:
    """Some idle processes. A job's function must be importable, its arguments picklable."""

    def __init__(self, count: int) -> None:
        # A fork server imports torch once: its forks are there in milliseconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "tests.rank_processes"])
        self._connections: list[Connection] = []
        self._processes = []
        for _ in range(count):
            mine, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(mine)
            self._processes.append(process)

    def start(self, rank: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin a job."""
        self._connections[rank].send((function, arguments))

    def answer(self, rank: int, timeout_s: float = 60.0) -> tuple[bool, Any]:
        """(True, what the job returned) or (False, the error it raised), once it is done."""
        connection = self._connections[rank]
        assert connection.poll(timeout_s), f"rank {rank} has not answered in {timeout_s} s"
        answer: tuple[bool, Any] = connection.recv()
        return answer

    def run(self, jobs: Sequence[Job]) -> list[Any]:
        """Run job i on process i, all at once; returns what they returned. All must succeed."""
        for rank, (function, arguments) in enumerate(jobs):
            self.start(rank, function, *arguments)
        answers = [self.answer(rank) for rank in range(len(jobs))]
        assert all(fine for fine, _ in answers), answers
        return [value for _, value in answers]

    def kill(self, rank: int) -> None:
        """End a process as a crash would: no cleanup, no goodbye."""
        pid = self._processes[rank].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End all processes that are left."""
        for connection, process in zip(self._connections, self._processes, strict=True):
            if process.is_alive():
                connection.send(None)
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()
            connection.close()


@contextmanager
def rank_processes(count: int) -> Iterator[RankProcesses]:
    """Some processes, ended on the way out."""
    processes = RankProcesses(count)
    try:
        yield processes
    finally:
        processes.close()
