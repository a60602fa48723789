"""`windrose serve` for the length of one run, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.local_ray import free_ports
from ops.chaos.census import named_shm
from ops.chaos.errors import ChaosError
from ops.client import ServerError
from ops.server_process import STOP_TIMEOUT_S, ServerProcess, windrose_serve


class Served:
    """A server of our own: its root URL, and once it has ended what it left."""

    def __init__(self, model_dir: str, flags: Sequence[str]) -> None:
        """Start it on a free port; what it prints goes to stderr."""
        [port] = free_ports(1)
        self._shm = named_shm()
        command = windrose_serve(model_dir, flags, port)
        self._server = ServerProcess("windrose serve", command, port)
        self.url = self._server.url

    def wait_until_healthy(self) -> None:
        """Wait for /health.

        Raises:
            ChaosError: it ended, or took too long.
        """
        try:
            self._server.wait_until_ready()
        except ServerError as error:
            raise ChaosError(str(error)) from error

    def stop(self) -> list[str]:
        """SIGTERM, then SIGKILL to what is left; returns one sentence for each thing left."""
        # Ray names the session after the process that started it.
        runtime_dirs = [
            session.parent.parent
            for session in Path("/tmp").glob(f"windrose-*/ray/session_*_{self._server.pid}")
        ]
        ended = self._server.stop()
        left = [f"{process} was left" for process in ended.left]
        if ended.status is None:
            left.insert(0, f"windrose serve had not ended {STOP_TIMEOUT_S:g} s after SIGTERM")
        elif ended.status:
            left.insert(0, f"windrose serve ended with status {ended.status}")
        files = {path for path in runtime_dirs if path.exists()} | (named_shm() - self._shm)
        left += [f"{path} was left" for path in sorted(files)]
        return left


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
