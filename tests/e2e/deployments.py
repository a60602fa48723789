"""Real deployments for tests: a Ray of our own, Serve with HAProxy, applications by prefix."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import httpx

from cluster.local_ray import LocalRay
from configs.schema import WindroseConfig
from tests.ports import free_port

_CPUS = 64  # logical: what the tests deploy must be placed, not be fast
_START_TIMEOUT_S = 180.0
_POLL_S = 0.1  # what starts or ends an application looks once a second by itself
_METRICS_PERIOD_MS = 1000  # from processes to Ray's agent; 10 s by itself


class Cluster:
    """A local Ray with Serve listening on one port."""

    def __init__(self, ray: LocalRay, port: int) -> None:
        self._ray = ray
        self.port = port

    @classmethod
    def start(cls) -> Cluster:
        """Start Ray, then Serve behind HAProxy."""
        port = free_port()
        local_ray = LocalRay(_CPUS, shutdown_timeout_s=5.0, http_port=port)
        os.environ.update({"RAY_metrics_report_interval_ms": str(_METRICS_PERIOD_MS)})
        local_ray.start(exports=True)
        from ray import serve

        client: Any = import_module("ray.serve._private.client")
        client.CLIENT_POLLING_INTERVAL_S = _POLL_S
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        return cls(local_ray, port)

    @property
    def address(self) -> str:
        """What RAY_ADDRESS must say to join it."""
        import ray

        address: str = ray.get_runtime_context().gcs_address
        return address

    def applications(self) -> set[str]:
        """Names of the applications that Serve has."""
        from ray import serve

        return set(serve.status().applications)

    def application_status(self, name: str) -> str | None:
        """As Serve has it; None where there is no such application."""
        from ray import serve

        application = serve.status().applications.get(name)
        return None if application is None else str(application.status.value)

    def stop(self) -> None:
        """End everything the cluster started."""
        from ray import serve

        serve.shutdown()
        self._ray.stop()

    @contextmanager
    def deployed(self, config: WindroseConfig, name: str) -> Iterator[str]:
        """Run one application under /NAME; yields its base URL once it is healthy."""
        from ray import serve

        from cluster.app import build_app

        serve.run(build_app(config), name=name, route_prefix=f"/{name}")
        url = f"http://127.0.0.1:{self.port}/{name}"
        try:
            wait_healthy(url)
            yield url
        finally:
            serve.delete(name)


def wait_healthy(url: str) -> None:
    """Poll GET /health until it answers 200."""
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    with httpx.Client(timeout=5.0) as client:
        while time.monotonic() < deadline_s:
            try:
                if client.get(f"{url}/health").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass  # the port is not open yet
            time.sleep(_POLL_S)
    raise TimeoutError(f"{url} was not healthy after {_START_TIMEOUT_S} s")
