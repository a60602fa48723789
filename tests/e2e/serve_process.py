"""A `windrose serve` process as tests start it, and what it may not leave behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.ports import free_port

WINDROSE = Path(sys.executable).parent / "windrose"
NOTING_DIRECTORIES = Path(__file__).parent / "noting_directories"
MARK = "WINDROSE_TEST_MARK"
NOTES = "WINDROSE_TEST_NOTES"
START_TIMEOUT_S = 180.0


class Server:
    """A `windrose serve` process, and everything that carries its mark."""

    def __init__(self, model: Path, *flags: str, port: int, ray_address: str = "") -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.printed = ""  # on stdout, up to the announcement
        self._mark = uuid.uuid4().hex
        self._shm = set(os.listdir("/dev/shm"))
        self._notes = model.parent / f"directories-{self._mark}"
        self._notes.touch()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment |= {MARK: self._mark, NOTES: str(self._notes)}
        path = (NOTING_DIRECTORIES, environment.get("PYTHONPATH"))
        environment["PYTHONPATH"] = os.pathsep.join(str(one) for one in path if one)
        if ray_address:
            environment["RAY_ADDRESS"] = ray_address
        self.process = subprocess.Popen(
            [WINDROSE, "serve", model, "--port", str(port), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,  # so that a signal to its group is what Ctrl-C sends
        )

    def announcement(self) -> str:
        """Wait for the lines that say it serves; returns the command they offer to try."""
        assert self.process.stdout is not None
        watchdog = threading.Timer(START_TIMEOUT_S, self.process.kill)
        watchdog.start()
        try:
            for line in self.process.stdout:
                self.printed += line
                if line.startswith("Try:"):
                    return line.removeprefix("Try:").strip()
        finally:
            watchdog.cancel()
        raise AssertionError(f"it ended before it served: {self.end()}")

    def await_line(self, begins: str) -> None:
        """Wait until it says on stderr what begins so."""
        assert self.process.stderr is not None
        watchdog = threading.Timer(START_TIMEOUT_S, self.process.kill)
        watchdog.start()
        try:
            assert any(line.startswith(begins) for line in self.process.stderr), "it never said so"
        finally:
            watchdog.cancel()

    def directories(self) -> list[Path]:
        """What its processes, and no others of this machine, have made in /tmp."""
        return [Path(line) for line in self._notes.read_text().splitlines()]

    def end(self) -> tuple[int, str]:
        """Wait for the end; returns exit status and what it said on stderr."""
        rest, stderr = self.process.communicate(timeout=120.0)
        self.printed += rest
        return self.process.returncode, stderr

    def assert_nothing_left(self) -> None:
        """No process with our mark, no new file in /dev/shm, none of its in /tmp, no listener."""
        assert marked(self._mark) == []
        assert set(os.listdir("/dev/shm")) <= self._shm
        assert [one for one in self.directories() if one.exists()] == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", self.port), timeout=2.0)


def marked(mark: str) -> list[str]:
    """Processes that inherited the mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(f"{process.pid} {process.name()}")
        except psutil.Error:
            continue  # ended meanwhile
    return found


@contextmanager
def serving(model: Path, *flags: str) -> Iterator[Server]:
    server = Server(model, *flags, port=free_port())
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            server.end()
