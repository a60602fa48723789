"""A real Prometheus that scrapes one server, with the project's own rules."""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from tests.ports import free_port

RULES = Path(__file__).parents[2] / "ops" / "prometheus"
PROMETHEUS = shutil.which("prometheus")
_START_TIMEOUT_S = 60.0


class Prometheus:
    """Asks it what Grafana would."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=f"{url}/api/v1/", timeout=10.0)

    def get(self, path: str, **params: str) -> Any:
        """The data of an answer."""
        answer = self._client.get(path, params=params).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, query: str) -> list[float]:
        """What a query gives now, NaN left out."""
        result = self.get("query", query=query)["result"]
        numbers = [float(one["value"][1]) for one in result]
        return [number for number in numbers if not math.isnan(number)]


@contextmanager
def scraping(url: str, directory: Path) -> Iterator[Prometheus]:
    """Prometheus as ops/prometheus configures it, but for the target and shorter intervals."""
    config = yaml.safe_load((RULES / "prometheus.yml").read_text())
    for file in config["rule_files"]:
        shutil.copy(RULES / file, directory)
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    parts, (job,) = urlsplit(url), config["scrape_configs"]
    job["metrics_path"] = f"{parts.path}/metrics"
    job["static_configs"] = [{"targets": [parts.netloc]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            str(PROMETHEUS),
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={address}",
            "--log.level=warn",
        ]
    )
    prometheus = Prometheus(f"http://{address}")
    try:
        _wait_until_up(prometheus, process)
        yield prometheus
    finally:
        process.terminate()
        process.wait(30.0)


def _wait_until_up(prometheus: Prometheus, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, "prometheus has ended"
        try:
            if prometheus.values("up") == [1.0]:
                return
        except (httpx.TransportError, ValueError):
            pass  # the port is not open yet, or nothing can be asked yet
        time.sleep(0.1)
    raise TimeoutError("prometheus does not reach the server")
