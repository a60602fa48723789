"""`windrose serve` for the length of one run, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from cluster.local_ray import free_ports
from ops.chaos.census import named_shm
from ops.chaos.errors import ChaosError

START_TIMEOUT_S = 900.0  # a large checkpoint from a slow disk
STOP_TIMEOUT_S = 120.0  # four times what accepted requests get by default
_POLL_S = 0.2
_STDERR_FD = 2
_MARK = "WINDROSE_CHAOS_RUN"  # in the environment of everything the server starts


class Served:
    """A server of our own: its root URL, and once it has ended what it left."""

    def __init__(self, model_dir: str, flags: Sequence[str]) -> None:
        """Start it on a free port; what it prints goes to stderr."""
        [port] = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._mark = uuid.uuid4().hex
        self._shm = named_shm()
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        command = [sys.executable, "-m", "ops.cli", "serve", model_dir, *flags, "--port", str(port)]
        self._process = subprocess.Popen(
            command,
            stdout=_STDERR_FD,  # stdout is the report's
            env={**environment, _MARK: self._mark},
            start_new_session=True,  # Ctrl-C is for us; we then stop it
        )

    def wait_until_healthy(self) -> None:
        """Wait for /health.

        Raises:
            ChaosError: it ended, or took too long.
        """
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                raise ChaosError(f"windrose serve ended with status {self._process.returncode}")
            try:
                if httpx.get(f"{self.url}/health", timeout=1.0, trust_env=False).is_success:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(_POLL_S)
        raise ChaosError(f"windrose serve was not healthy after {START_TIMEOUT_S:g} s")

    def stop(self) -> list[str]:
        """SIGTERM, then SIGKILL to what is left; returns one sentence for each thing left."""
        # Ray names the session after the process that started it.
        runtime_dirs = [
            session.parent.parent
            for session in Path("/tmp").glob(f"windrose-*/ray/session_*_{self._process.pid}")
        ]
        self._process.send_signal(signal.SIGTERM)
        left = []
        try:
            status = self._process.wait(STOP_TIMEOUT_S)
            if status:
                left.append(f"windrose serve ended with status {status}")
        except subprocess.TimeoutExpired:
            left.append(f"windrose serve had not ended {STOP_TIMEOUT_S:g} s after SIGTERM")
        processes = self._marked()
        left += [f"process {process.pid} ({process.name()}) was left" for process in processes]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes)
        self._process.wait()
        files = {path for path in runtime_dirs if path.exists()} | (named_shm() - self._shm)
        left += [f"{path} was left" for path in sorted(files)]
        return left

    def _marked(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark:
                    found.append(process)
            except psutil.Error:
                continue  # ended meanwhile, or another user's
        return found


@contextmanager
def serving(model_dir: str, flags: Sequence[str]) -> Iterator[Served]:
    """A healthy server; stopped at the end of the block unless it was already.

    Raises:
        ChaosError: it does not start.
    """
    served = Served(model_dir, flags)
    try:
        served.wait_until_healthy()
        yield served
    except BaseException:
        served.stop()
        raise
