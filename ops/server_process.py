"""A server started for one run: when it is ready, what its processes take, how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter, sleep

import httpx
import psutil

from configs.environment import ADMIN_API_KEY, API_KEY
from ops.client import ServerError

START_TIMEOUT_S = 900.0  # a large checkpoint from a slow disk
STOP_TIMEOUT_S = 120.0  # four times what accepted requests get by default
_KILL_TIMEOUT_S = 10.0
_POLL_S = 0.05
_PROBE_TIMEOUT_S = 1.0
_STDERR_FD = 2
_LINES_KEPT = 1000
# A server for one run has a cluster of its own and opens to who started it.
_NOT_PASSED = ("RAY_ADDRESS", API_KEY, ADMIN_API_KEY)
_MARK = "WINDROSE_SERVER_RUN"  # in the environment of everything the server starts


@dataclass(frozen=True, slots=True)
class Memory:
    """Of all processes: RSS counts shared pages once a process, PSS once in all."""

    processes: int
    rss_bytes: int
    pss_bytes: int


@dataclass(frozen=True, slots=True)
class Ended:
    """How a server ended after SIGTERM: None where it did not in time. `left` it left running."""

    exit_s: float | None
    status: int | None
    left: tuple[str, ...]


def windrose_serve(model_dir: str, flags: Sequence[str], port: int | str) -> list[str]:
    """The words of the command that serves a checkpoint with this interpreter."""
    return [sys.executable, "-m", "ops.cli", "serve", model_dir, *flags, "--port", str(port)]


class ServerProcess:
    """A running server. `url` is its root on the loopback interface."""

    def __init__(self, name: str, command: Sequence[str], port: int) -> None:
        """Start it; what it prints goes to stderr.

        Raises:
            OSError: there is no such program.
        """
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self._mark = uuid.uuid4().hex
        environment = {key: value for key, value in os.environ.items() if key not in _NOT_PASSED}
        self.started_s = perf_counter()
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            env={**environment, _MARK: self._mark},
            start_new_session=True,  # Ctrl-C is for us; we then stop it
        )
        self._printed: deque[str] = deque(maxlen=_LINES_KEPT)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def printed(self) -> str:
        """The last lines that it wrote to stdout."""
        return "".join(list(self._printed))

    def _read(self) -> None:
        """Pass its stdout on to stderr: stdout is the report's."""
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                os.write(_STDERR_FD, line)
                self._printed.append(line.decode(errors="replace"))

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Wait for /health, or where there is none for /v1/models; returns perf_counter() then.

        Raises:
            ServerError: it ended, or took too long.
        """
        deadline_s = perf_counter() + timeout_s
        # The server is on this machine, whatever proxy the environment names.
        with httpx.Client(base_url=self.url, timeout=_PROBE_TIMEOUT_S, trust_env=False) as client:
            while perf_counter() < deadline_s:
                status = self._process.poll()
                if status is not None:
                    raise ServerError(f"{self.name} ended with status {status}")
                if _answers(client):
                    return perf_counter()
                sleep(_POLL_S)
        raise ServerError(f"{self.name} was not healthy after {timeout_s:g} s")

    def memory(self) -> Memory:
        """What its processes take now."""
        rss_bytes = pss_bytes = count = 0
        for process in self._marked():
            try:
                info = process.memory_full_info()
            except psutil.Error:
                continue  # ended meanwhile
            count += 1
            rss_bytes += int(info.rss)
            pss_bytes += int(info.pss)
        return Memory(count, rss_bytes, pss_bytes)

    def cpu_s(self) -> dict[int, float]:
        """Processor time that each of its live processes has had, by pid."""
        used = {}
        for process in self._marked():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue  # ended meanwhile
            used[process.pid] = times.user + times.system
        return used

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> Ended:
        """SIGTERM, then SIGKILL to whatever is left of it. Once it has ended it does nothing."""
        began_s = perf_counter()
        self._process.send_signal(signal.SIGTERM)
        exit_s = status = None
        try:
            status = self._process.wait(timeout_s)
            exit_s = perf_counter() - began_s
        except subprocess.TimeoutExpired:
            pass
        left = list(self._marked())
        named = tuple(f"process {process.pid} ({_name(process)})" for process in left)
        for process in left:
            with suppress(psutil.NoSuchProcess):  # it ends at this moment
                process.kill()
        psutil.wait_procs(left, timeout=_KILL_TIMEOUT_S)
        self._process.wait()
        self._reader.join(_KILL_TIMEOUT_S)
        return Ended(exit_s, status, named)

    def _marked(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark:
                    yield process
            except psutil.Error:
                continue  # ended meanwhile, or another user's


def _answers(client: httpx.Client) -> bool:
    """Whether it says that it is healthy; or has no /health, and lists its models."""
    try:
        response = client.get("/health")
        if response.status_code != httpx.codes.NOT_FOUND:
            return response.is_success
        # A proxy in front of a server that is starting has no such path either, for a while.
        listed = client.get("/v1/models").is_success
        return listed and client.get("/health").status_code == httpx.codes.NOT_FOUND
    except httpx.HTTPError:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "ended since"
