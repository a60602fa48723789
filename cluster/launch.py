"""Deploying the application on the connected Ray cluster, watching it start, draining it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from actors.actor_stats import ActorStats
from actors.naming import namespace_of
from cluster.app import build_app
from configs.schema import WindroseConfig

APPLICATION = "windrose"
_POLL_S = 0.1
_STATS_TIMEOUT_S = 2.0


class DeployError(RuntimeError):
    """The application did not come up; the text is Serve's own, with the actor's error in it."""


@dataclass(frozen=True, slots=True)
class Starting:
    """How far the start is: what actors there are, and what they have read."""

    actors: tuple[ActorStats, ...]


def deploy(config: WindroseConfig) -> None:
    """Start Serve where it does not run, and hand it the application; returns before it is ready.

    Raises:
        ValueError: the checkpoint or the settings are at fault, or Serve listens elsewhere.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": config.host, "port": config.port})
    client = _get_global_client()
    assert client is not None, "Serve has just been started"
    listening = client.http_config
    if listening.port != config.port:
        raise ValueError(
            f"Serve already runs on this cluster, on {listening.host}:{listening.port}; "
            f"use --port {listening.port}"
        )
    target = serve.RunTarget(target=build_app(config), name=APPLICATION)
    serve.run_many(
        [target],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def watch_start(config: WindroseConfig) -> Iterator[Starting]:
    """Yield the state of the start until the server answers GET /health with 200.

    Raises:
        DeployError: Serve gave up.
        TimeoutError: not healthy within `start_timeout_s`.
    """
    deadline_s = time.monotonic() + config.start_timeout_s
    with httpx.Client(base_url=local_url(config), timeout=2.0) as client:
        while time.monotonic() < deadline_s:
            application = serve.status().applications.get(APPLICATION)
            status = None if application is None else application.status
            if application is not None and status in (
                ApplicationStatus.DEPLOY_FAILED,
                ApplicationStatus.UNHEALTHY,
            ):
                details = [application.message]
                details += [d.message for d in application.deployments.values() if d.message]
                raise DeployError("\n".join(details))
            if status == ApplicationStatus.RUNNING and _healthy(client):
                return
            yield Starting(_survey())
            time.sleep(_POLL_S)
    raise TimeoutError(f"the server was not healthy after {config.start_timeout_s:.0f} s")


def _healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _survey() -> tuple[ActorStats, ...]:
    namespace = namespace_of(APPLICATION)
    stats: list[ActorStats] = []
    for named in ray.util.list_named_actors(all_namespaces=True):
        if named["namespace"] != namespace:
            continue
        try:
            actor = ray.get_actor(named["name"], namespace)
            answer: Any = ray.get(actor.stats.remote(), timeout=_STATS_TIMEOUT_S)
        except (ray.exceptions.RayError, ValueError):
            continue  # not up yet, or gone again: the next look tells
        stats.append(answer)
    return tuple(stats)


def local_url(config: WindroseConfig) -> str:
    """Where this machine reaches the server."""
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::", "") else config.host
    return f"http://{host}:{config.port}"


def drain(timeout_s: float) -> int:
    """Let every ingress finish what it accepted; returns how many requests did not make it."""
    responses = serve.get_app_handle(APPLICATION).broadcast("drain", timeout_s)
    return sum(responses.results(timeout_s=timeout_s + 5.0))


def undeploy() -> None:
    """Take the application off a Serve that goes on running for others."""
    serve.delete(APPLICATION)
