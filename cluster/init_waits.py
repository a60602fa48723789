"""What `ray.init` waits for when it starts a node here: less of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LOOK_EVERY_S = 0.03
_ANSWER_S = 2.0
_LONGEST_S = 10.0  # then Ray's own waiting, which ends with its own error


@contextmanager
def frequent_looks() -> Iterator[None]:
    """Let `ray.init` in here go on as soon as its node is registered.

    A node is there when two helpers of its own have started, which takes about a second. Ray looks
    after 0.1, 1.1 and 2.1 s: a moment late is a second lost.
    """
    from ray._private import services

    of_ray: Callable[[str, str], Any] = services.get_node

    def once_registered(gcs_address: str, node_id: str) -> Any:
        _wait_for(gcs_address, node_id)
        return of_ray(gcs_address, node_id)

    services.get_node = once_registered
    try:
        yield
    finally:
        services.get_node = of_ray


@contextmanager
def no_api_server() -> Iterator[None]:
    """Let `ray.init` in here start no API server: it waits for that before it starts a node.

    Where there is no dashboard Ray starts it all the same, only to report usage.
    """
    from ray._private import services

    of_ray = services.start_api_server
    services.start_api_server = _not_started
    try:
        yield
    finally:
        services.start_api_server = of_ray


@contextmanager
def small_agent() -> Iterator[None]:
    """Let `ray.init` in here start its node's agent as where Ray has no dashboard's packages.

    The node waits for the agent, which otherwise imports what only a dashboard would ask it for.
    """
    from ray._private import utils

    of_ray = utils.get_dashboard_dependency_error
    utils.get_dashboard_dependency_error = _no_dashboard
    try:
        yield
    finally:
        utils.get_dashboard_dependency_error = of_ray


def _no_dashboard() -> ImportError:
    return ImportError("no dashboard on this node")


def _not_started(*_args: object, **_options: object) -> tuple[None, None]:
    return None, None  # no address, no process: as Ray has it where one could not be started


def _wait_for(gcs_address: str, node_id: str) -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import RayError

    deadline_s = time.monotonic() + _LONGEST_S
    try:
        client = GcsClient(address=gcs_address)
        while time.monotonic() < deadline_s:
            if any(there.hex() == node_id for there in client.get_all_node_info(timeout=_ANSWER_S)):
                return
            time.sleep(_LOOK_EVERY_S)
    except (RayError, RuntimeError):
        return  # whatever it is, Ray meets it as well and says it
