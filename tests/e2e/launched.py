"""cluster/local.yaml and the real `ray up`, on machines of their own."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.e2e.deployments import wait_healthy
from tests.e2e.namespaces import HOME, Lan, Machine, lan

T = TypeVar("T")

REPOSITORY = Path(__file__).parents[2]
HTTP_PORT = 8000
_GONE_TIMEOUT_S = 45.0
_CPUS_OF_AN_ACTOR = 2
_CPUS = {"head": 1, "worker-1": 6, "worker-2": 6}  # no actor on the head, all three on a worker
_DRIVER = {"RAY_AUTH_MODE": "token"}
# Somebody else's, who takes from each worker the room for one actor.
_TENANT = """
import ray, sys
from ray.util import get_placement_group, placement_group, remove_placement_group
ray.init(address="auto", namespace="tenant", log_to_driver=False)
if sys.argv[1] == "comes":
    group = placement_group([{"CPU": 2}] * 2, "STRICT_SPREAD", name="tenant", lifetime="detached")
    ray.get(group.ready())
else:
    remove_placement_group(get_placement_group("tenant"))
"""

logger = logging.getLogger(__name__)


@contextmanager
def timed(phase: str) -> Iterator[None]:
    """Log how long something took."""
    begun = time.perf_counter()
    yield
    logger.warning("%s: %.1f s", phase, time.perf_counter() - begun)


class Launched:
    """The machines, and the file they were launched with."""

    def __init__(self, network: Lan) -> None:
        self._network = network
        self.head, *self.workers = network.machines
        self._server: subprocess.Popen[bytes] | None = None
        self._end: Future[tuple[int, list[str]]] | None = None
        self.url = f"http://{self.head}:{HTTP_PORT}"

    def machine(self, address: str) -> Machine:
        """The machine with this address."""
        return self._network.machines[address]

    def cut(self, address: str) -> None:
        """Pull a machine's cable."""
        self._network.cut(address)

    def mend(self, address: str) -> None:
        """Put it back."""
        self._network.mend(address)

    def up(self) -> None:
        """`ray up`, and wait until all workers run Ray."""
        self._network.launcher.run("ray", "get-auth-token", "--generate")
        self._network.launcher.run("ray", "up", "--yes", "local.yaml")
        for worker in self.workers:
            self.raylet(worker)

    def raylet(self, address: str, *, but: int = 0) -> int:
        """The process id of a machine's raylet, once there is one (other than `but`)."""
        return until(lambda: next(iter(self._pids(address, "/raylet/raylet ") - {but}), 0), 60.0)

    def actors(self, address: str) -> set[int]:
        """Process ids of the attention and expert actors on a machine."""
        return self._pids(address, "ray::AttentionActor") | self._pids(address, "ray::ExpertActor")

    def _pids(self, address: str, part: str) -> set[int]:
        return {pid for pid, line in self.machine(address).processes().items() if part in line}

    def tenant(self, does: str) -> None:
        """Somebody else "comes" or "goes"."""
        self.machine(self.head).run("python", "-c", _TENANT, does, environment=_DRIVER)

    def serve(self, model: Path, *flags: str) -> None:
        """`windrose serve` on the head, which joins the cluster; returns when it is healthy."""
        command = ["windrose", "serve", str(model), "--host", "0.0.0.0", "--port", str(HTTP_PORT)]
        command += ["--cpus-per-actor", str(_CPUS_OF_AN_ACTOR), *flags]
        head = self.machine(self.head)
        self._server = subprocess.Popen(head.command(*command, environment={"RAY_ADDRESS": "auto"}))
        wait_healthy(self.url)

    def take_down(self) -> Future[tuple[int, list[str]]]:
        """SIGTERM to the server, then `ray down`, in a thread; called again it is the same.

        The result is the server's exit status, and what still was on the machines 45 s after
        `ray down`, which ends the head alone: processes, names in shared memory.
        """
        if self._end is None:
            self._end = ThreadPoolExecutor(1).submit(self._take_down)
        return self._end

    def _take_down(self) -> tuple[int, list[str]]:
        with timed("stop of windrose serve"):
            status = self._stop_serving()
        with timed("ray down"):
            self._network.launcher.run("ray", "down", "--yes", "local.yaml")
        with timed("all gone"):
            deadline_s = time.monotonic() + _GONE_TIMEOUT_S
            while (left := self._left()) and time.monotonic() < deadline_s:
                time.sleep(0.5)  # a look at all processes is not cheap
        return status, left

    def _stop_serving(self) -> int:
        assert self._server is not None
        for pid in self._pids(self.head, "windrose serve "):
            os.kill(pid, signal.SIGTERM)
        return self._server.wait(60.0)

    def _left(self) -> list[str]:
        machines = self._network.machines.values()
        running = [f"{m.name}: {line}" for m in machines for line in m.processes().values()]
        return running + [f"{m.name}: {name}" for m in machines for name in m.shared_memory()]


@contextmanager
def launched(directory: Path, *visible: Path) -> Iterator[Launched]:
    """Machines ready for `up`: a head and two workers, on which the project is installed."""
    python = Path(sys.executable)
    with lan(
        tuple(_CPUS), directory, [REPOSITORY, python.parents[1], *visible], _bashrc
    ) as network:
        head, *workers = network.machines
        (directory / "launcher" / "tmp" / HOME.name / "local.yaml").write_text(
            yaml.safe_dump(local_yaml(head, workers), width=1000)
        )
        yield Launched(network)


def local_yaml(head: str, workers: list[str]) -> dict[str, Any]:
    """The committed file, filled in; but what it installs is installed, and nobody wants to look.

    Ray's dashboard is ten processes on the head.
    """
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster" / "local.yaml").read_text())
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"]["ssh_user"] = "root"
    config["setup_commands"] = []
    config["head_start_ray_commands"] = [
        command.replace("ray start --head", "ray start --head --include-dashboard=false")
        for command in config["head_start_ray_commands"]
    ]
    return config


def _bashrc(name: str) -> str:
    variables = {
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(REPOSITORY),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_OVERRIDE_RESOURCES": f'{{"CPU": {_CPUS.get(name, 0)}}}',
    }
    return "".join(f"export {key}={shlex.quote(value)}\n" for key, value in variables.items())


def until(look: Callable[[], T], timeout_s: float) -> T:
    """Wait for something that can only be looked for; returns the first true look."""
    deadline_s = time.monotonic() + timeout_s
    while not (seen := look()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s"
        time.sleep(0.1)
    return seen
