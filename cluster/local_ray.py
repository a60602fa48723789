"""Bringing Ray up on this machine and down again without a trace; or joining one that runs."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import random
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Set
from concurrent.futures import Future, wait
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import psutil

from cluster.init_waits import frequent_looks, no_api_server, small_agent
from cluster.log_lines import show_own_lines

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <linux/prctl.h>
_GONE_TIMEOUT_S = 10.0
_UNCLAIMED_PORTS = range(20000, 30000)
_LOOK_EVERY_S = 0.5
_NEEDED = ("gcs_server", "raylet")  # of what Ray starts here; the rest serves people who look on
_OBJECT_STORE_BYTES = 256 << 20  # requests and tokens; weights and rows never go through it

T = TypeVar("T")

logger = logging.getLogger(__name__)


def serve_environment(
    runtime_dir: Path, shutdown_timeout_s: float, http_port: int
) -> dict[str, str]:
    """Ray and Serve settings of a cluster of our own; what the user has set wins.

    HAProxy and Serve use fixed ports and paths by default, so that a second server on the
    machine would collide with the first; here each gets its own, none of them `http_port`.
    """
    free = free_ports(4, but={http_port})
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # One event loop in a replica. With Serve's own beside it, in another thread, each request
        # and each token goes to and fro, and either waits for the interpreter's lock.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "actors.http.request_ids.serve_middlewares",
        # More threads than it needs take a fifth more CPU for each token, on the ranks' cores.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, max(1, (os.cpu_count() or 1) // 4))),
        # By default each replica does this ten times a second, idle or not.
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
        # Serve's controller looks at everything ten times a second by default, idle or not.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(runtime_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(runtime_dir / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(runtime_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(runtime_dir / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(runtime_dir / "metrics.sock"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free[0]),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free[1]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free[2]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free[3]),
        # Only this process stops the server, after it has drained it: nothing else to wait for.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.1",
        "RAY_SERVE_SHUTDOWN_TIER_TIMEOUT_S": str(max(1.0, shutdown_timeout_s)),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A call that comes too late fails, instead of starting another Ray.
        "RAY_ENABLE_AUTO_CONNECT": "0",
        # Ray's own default of 15 leaves actors what any other process of the machine lets them.
        "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Timing every callback of every event loop takes a fifteenth of what idle processes take.
        "RAY_event_stats": "0",
        # Ray's node asks its own object store before that listens, in about half of all starts, and
        # then sleeps for a second. The same ten seconds in all, in shorter sleeps.
        "RAY_raylet_client_connect_timeout_milliseconds": "50",
        "RAY_raylet_client_num_connect_attempts": "200",
    }


def free_ports(count: int, but: Set[int] = frozenset()) -> list[int]:
    """Ports of the loopback interface that nobody listens on, or soon will: `but`.

    Not from the range that outgoing connections get theirs from: one of Ray's many could take a
    port between now and its use. Nor from Ray's own for workers and replicas.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(_UNCLAIMED_PORTS, len(_UNCLAIMED_PORTS)):
        if port in but:
            continue
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue  # somebody listens there
        ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError(f"fewer than {count} free ports in {_UNCLAIMED_PORTS}")


def join_cluster(address: str) -> None:
    """Connect to a running cluster; call it before any import of Ray.

    `ray start` asks for a token as soon as its user has one, but a driver sends it only when told
    to: so where there is one it is sent. A cluster that asks for none does not mind.

    Raises:
        ConnectionError: no cluster answers at `address`.
    """
    if "RAY_AUTH_TOKEN" in os.environ or _token_file().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    ray.init(address=address, log_to_driver=True)
    show_own_lines()


def _token_file() -> Path:
    """Where Ray keeps its token, unless RAY_AUTH_TOKEN_PATH says otherwise."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))


class RayLost(RuntimeError):
    """A process of Ray's own has ended, without which nothing can be served or stopped in order."""


class LocalRay:
    """A Ray cluster of one node, owned by this process."""

    def __init__(self, num_cpus: float, shutdown_timeout_s: float, http_port: int) -> None:
        """Prepare the environment: before any import of Ray, which reads it then."""
        self._num_cpus = num_cpus
        self.unanswered = False  # a call to Ray goes on that nobody waits for any more
        # Paths of Unix sockets must be short (97 bytes for HAProxy's); most of one is a node id.
        self._runtime_dir = Path(tempfile.mkdtemp(prefix="windrose-", dir="/tmp"))
        environment = serve_environment(self._runtime_dir, shutdown_timeout_s, http_port)
        for key, value in environment.items():
            os.environ.setdefault(key, value)
        # What Ray leaves behind when it is killed becomes our child, not init's.
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)

    def start(self, *, show_logs: bool = False, exports: bool = False) -> None:
        """Start the node and connect to it; show what the actors log at this process's stderr?

        With `exports` its agent exports Ray's metrics, which takes it a second longer to start.
        """
        import ray

        agent = nullcontext() if exports else small_agent()
        with frequent_looks(), no_api_server(), agent:
            ray.init(
                address="local",
                num_cpus=math.ceil(self._num_cpus),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=show_logs,
                logging_level=logging.WARNING,
                _temp_dir=str(self._runtime_dir / "ray"),
            )
        if show_logs:
            show_own_lines()

    def require(self) -> None:
        """Raise RayLost if it has ended, though nobody told it to."""
        from ray._private import worker

        node: Any = worker._global_node
        for name, _process in node.dead_processes() if node else ():
            if name in _NEEDED:
                raise RayLost(f"Ray's {name} has ended")

    def ask(self, call: Callable[[], T], *, let_go_s: float = 0.0) -> T:
        """Return what a call to Ray returns. RayLost if Ray ends meanwhile: it may never return.

        Where a signal ends the wait, the call still gets `let_go_s` to come to an end by itself.
        """
        answer: Future[T] = Future()

        def wait_for_it() -> None:
            try:
                answer.set_result(call())
            except Exception as error:  # whatever it is, it is raised where it was asked
                answer.set_exception(error)

        try:
            Thread(target=wait_for_it, daemon=True).start()
            while not wait([answer], timeout=_LOOK_EVERY_S).done:
                self.require()
        except RayLost:
            self.unanswered = True
            raise
        except BaseException:
            before, self.unanswered = self.unanswered, True  # for who interrupts this wait as well
            if wait([answer], timeout=let_go_s).done:
                self.unanswered = before
            raise
        return answer.result()

    def stop(self) -> None:
        """End the node and everything it started; removes its files.

        Where a call is `unanswered`, this process is to end without what Ray does at its exit.
        """
        import ray

        if not self.unanswered:  # after it, the next thing a thread asks ends the process at once
            ray.shutdown()
        end_descendants()
        shutil.rmtree(self._runtime_dir, ignore_errors=True)


def end_descendants() -> None:
    """Kill what this process still has below it, and wait until all of it is gone."""
    left = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs(left, timeout=1.0)
    for process in alive:
        with suppress(psutil.NoSuchProcess):  # it ends at this moment
            logger.info("killing %s (pid %d)", process.name(), process.pid)
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(alive, timeout=_GONE_TIMEOUT_S)
