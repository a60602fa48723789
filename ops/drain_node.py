"""`python -m ops.drain_node`: empty the Ray node of this machine before it goes away.

Ray places nothing new there, and Serve starts replacements of its replicas elsewhere, then lets
the old ones finish. Attention and expert actors stay until the end: their loss is mended by the
router, and fails no request. A pod's preStop hook runs this.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import ray
from ray._private.state import actors

# Made by Cython and protoc: type checkers do not see their names.
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import (  # type: ignore[attr-defined]
    DRAIN_NODE_REASON_PREEMPTION,
)

_REPLICA = "ServeReplica:"  # begins the class names of Serve's replicas
_POLL_S = 0.5


def drain_node(
    timeout_s: float,
    drain: Callable[[float], None],
    replicas: Callable[[], Iterable[str]],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Ask for the node's drain within `timeout_s`, and wait until no replica is left there.

    Returns the replicas that are left after that time. `drain` is given the seconds; `replicas`
    names those that live on the node.
    """
    deadline_s = clock() + timeout_s
    drain(timeout_s)
    while left := sorted(replicas()):
        if clock() >= deadline_s:
            return left
        sleep(_POLL_S)
    return []


def _drain(node_id: str, timeout_s: float) -> None:
    """Tell the GCS, which tells Serve; raises RuntimeError where it refuses."""
    address = ray.get_runtime_context().gcs_address
    until_ms = int((time.time() + timeout_s) * 1000)
    accepted, reason = GcsClient(address=address).drain_node(
        node_id, DRAIN_NODE_REASON_PREEMPTION, "the machine goes away", until_ms
    )
    if not accepted:
        raise RuntimeError(f"Ray does not drain node {node_id}: {reason}")


def _replicas_on(node_id: str) -> list[str]:
    """By the GCS: the dashboard, which Ray's public call asks, binds the head's loopback alone."""
    there = [
        one["ActorClassName"]
        for one in actors(actor_state_name="ALIVE").values()
        if one["Address"]["NodeID"] == node_id
    ]
    return [name for name in there if name.startswith(_REPLICA)]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's: `timeout` in seconds."""
    parser = argparse.ArgumentParser(
        prog="python -m ops.drain_node",
        description="Empty the Ray node of this machine before it goes away.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--timeout", type=float, default=90.0, metavar="SECONDS", help="(default: %(default)s)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 where no replica is left in time, 1 where one is or Ray could not be asked."""
    timeout_s = arguments(argv).timeout
    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
        node_id = ray.get_runtime_context().get_node_id()
        left = drain_node(
            timeout_s, lambda seconds: _drain(node_id, seconds), lambda: _replicas_on(node_id)
        )
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        print(f"ops.drain_node: {error}", file=sys.stderr)
        return 1
    for name in left:
        print(f"ops.drain_node: {name} is left after {timeout_s:.0f} s", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
