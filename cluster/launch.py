"""Deploying the application on the connected Ray cluster, watching it start, draining it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve._private.client import ServeControllerClient
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from actors.naming import namespace_of
from actors.pipeline.router import Router
from actors.ranks.actor_stats import ActorStats
from cluster.app import assemble, device_here
from cluster.placement import deployment_bundles
from cluster.room import Start
from configs.schema import WindroseConfig

APPLICATION = "windrose"
_GROUPS = f"SERVE_REPLICA::{APPLICATION}#{Router.__name__}#"  # as Serve names what it reserves
_POLL_S = 0.1
_CONTROLLER_POLL_S = 0.02
_STATS_TIMEOUT_S = 2.0
_DELETING_TIMEOUT_S = 5.0


class DeployError(RuntimeError):
    """The application did not come up; the text is Serve's own, with the actor's error in it."""


@dataclass(frozen=True, slots=True)
class Starting:
    """How far the start is: what actors there are, what they have read; and news to tell.

    The times are time.time(), 0 for what has not happened.
    """

    actors: tuple[ActorStats, ...]
    news: str | None = None
    placed_s: float = 0.0  # every pipeline had its place
    healthy_s: float = 0.0


def is_deployed() -> bool:
    """Whether the application is there already, on a cluster that others use as well."""
    if _get_global_client(raise_if_no_controller_running=False) is None:
        return False
    application = serve.status().applications.get(APPLICATION)
    return application is not None and application.status != ApplicationStatus.DELETING


def deploy(config: WindroseConfig) -> str:
    """Start Serve where it does not run, and hand it the application; returns before it is ready.

    Returns the device that the actors will compute on.

    Raises:
        ValueError: the checkpoint or the settings are at fault, or Serve listens elsewhere.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    client, proxies_up = _controller(config)
    listening = client.http_config
    if (listening.host, listening.port) != (config.host, config.port):
        raise ValueError(
            f"Serve already runs on this cluster, on {listening.host}:{listening.port}; "
            f"use --host {listening.host} --port {listening.port}"
        )
    device = device_here(config)
    target = serve.RunTarget(target=assemble(config, device), name=APPLICATION)
    serve.run_many(
        [target],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    proxies_up.result()
    return device


def _controller(config: WindroseConfig) -> tuple[ServeControllerClient, Future[None]]:
    """Serve's controller, started where none runs, and the start of its proxies.

    Those take a second or two: the controller gets the application meanwhile.
    """
    proxies_up: Future[None] = Future()
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        proxies_up.set_result(None)
        return client, proxies_up

    def start() -> None:
        try:
            serve.start(http_options={"host": config.host, "port": config.port})
        except Exception as error:  # whatever it is, `deploy` raises it
            proxies_up.set_exception(error)
        else:
            proxies_up.set_result(None)

    Thread(target=start, daemon=True).start()  # nobody waits for it where a signal ends the start
    while client is None:
        if proxies_up.done():
            proxies_up.result()
        time.sleep(_CONTROLLER_POLL_S)
        client = _get_global_client(raise_if_no_controller_running=False)
    return client, proxies_up


def watch_start(config: WindroseConfig, device: str) -> Iterator[Starting]:
    """Yield the state of the start until the server has answered GET /health with 200.

    Raises:
        DeployError: Serve gave up.
        NoRoom: the cluster cannot hold the deployment; says what is missing.
        TimeoutError: not healthy within `start_timeout_s`.
    """
    start = Start(_GROUPS, deployment_bundles(config, device, config.first_replicas))
    deadline_s = time.monotonic() + config.start_timeout_s
    with httpx.Client(base_url=local_url(config), timeout=2.0, trust_env=False) as client:
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
                healthy_s = time.time()
                yield Starting(_survey(), None, start.placed_s, healthy_s)
                return
            news = start.look()
            yield Starting(_survey(), news, start.placed_s)
            time.sleep(_POLL_S)
    raise TimeoutError(f"the server was not healthy after {config.start_timeout_s:.0f} s")


def _healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _survey() -> tuple[ActorStats, ...]:
    """Those that are up, all asked at once: one that imports torch does not answer meanwhile."""
    namespace = namespace_of(APPLICATION)
    asked: list[Any] = []
    for named in ray.util.list_named_actors(all_namespaces=True):
        if named["namespace"] != namespace:
            continue
        try:
            asked.append(ray.get_actor(named["name"], namespace).stats.remote())
        except (ray.exceptions.RayError, ValueError):
            continue  # gone again: the next look tells
    if not asked:
        return ()
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_STATS_TIMEOUT_S)
    stats: list[ActorStats] = []
    for answer in answered:
        try:
            stats.append(ray.get(answer))
        except ray.exceptions.RayError:
            continue
    return tuple(stats)


def local_url(config: WindroseConfig) -> str:
    """Where this machine reaches the server."""
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::", "") else config.host
    return f"http://{host}:{config.port}"


def drain(timeout_s: float) -> int:
    """Let every ingress finish what it accepted; returns how many requests did not make it."""
    responses = serve.get_app_handle(APPLICATION).broadcast("drain", timeout_s)
    return sum(responses.results(timeout_s=timeout_s + 5.0))


def undeploy(*, wait: bool = True) -> None:
    """Take the application off a Serve that goes on running for others.

    Without `wait` it returns once Serve has begun: a replica that never had a place takes it as
    long as one that has work to finish.
    """
    serve.delete(APPLICATION, _blocking=wait)
    deadline_s = time.monotonic() + _DELETING_TIMEOUT_S
    while not wait and time.monotonic() < deadline_s:
        application = serve.status().applications.get(APPLICATION)
        if application is None or application.status == ApplicationStatus.DELETING:
            return
        time.sleep(_POLL_S)
