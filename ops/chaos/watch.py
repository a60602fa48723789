"""The server as its operator sees it while it is struck: actors, recoveries, metrics, health."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ops.bench.report import over_rounds
from ops.chaos.errors import ChaosError
from ops.chaos.strike import Actor, actors_of
from ops.client import key_header

_TIMEOUT_S = 5.0  # a frozen actor keeps /v1/experts waiting until it is found out
_HEALTH_TIMEOUT_S = 1.0
_HEALTH_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Model:
    """What /v1/models says."""

    name: str
    max_model_len: int


class Watch:
    """Questions to one server. All raise ChaosError where it does not answer them."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._client = httpx.AsyncClient(
            base_url=url,
            headers=key_header(api_key),
            timeout=_TIMEOUT_S,
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
        )
        self.recoveries = Recoveries()

    async def close(self) -> None:
        """Close what is open."""
        await self._client.aclose()

    async def model(self) -> Model:
        """The model it serves."""
        body = await self._json("/v1/models")
        try:
            return Model(str(body["data"][0]["id"]), int(body["data"][0]["max_model_len"]))
        except (LookupError, TypeError, ValueError) as error:
            raise ChaosError("/v1/models names no model and its length: not Windrose?") from error

    async def actors(self) -> tuple[Actor, ...]:
        """Who is there now; takes note of the recoveries listed beside."""
        body = await self._json("/v1/experts")
        actors = actors_of(body)
        self.recoveries.note(body.get("recoveries", ()))
        return actors

    async def metrics(self) -> dict[str, float]:
        """All samples of /metrics, summed over their labels."""
        try:
            return samples((await self._get("/metrics")).text)
        except ValueError as error:
            raise ChaosError(f"/metrics is no Prometheus text: {error}") from error

    async def healthy(self) -> bool:
        """Whether /health answers 200, soon."""
        try:
            response = await self._client.get("/health", timeout=_HEALTH_TIMEOUT_S)
        except httpx.HTTPError:
            return False
        return response.status_code == HTTPStatus.OK

    async def poll_health(self, downtime: Downtime) -> None:
        """Ask for ever, ten times a second."""
        while True:
            asked_s = perf_counter()
            healthy = await self.healthy()
            downtime.note(healthy, asked_s, perf_counter())
            await asyncio.sleep(max(0.0, _HEALTH_EVERY_S - (perf_counter() - asked_s)))

    async def _json(self, path: str) -> Any:
        try:
            return (await self._get(path)).json()
        except ValueError as error:
            raise ChaosError(f"{path} did not answer JSON: not Windrose?") from error

    async def _get(self, path: str) -> httpx.Response:
        try:
            response = await self._client.get(path)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ChaosError(f"no answer to {self._client.base_url}{path}: {reason}") from error
        if response.status_code != HTTPStatus.OK:
            raise ChaosError(f"{self._client.base_url}{path} answered {response.status_code}")
        return response


def samples(text: str) -> dict[str, float]:
    """Prometheus text by sample name, summed over labels.

    Raises:
        ValueError: it is none.
    """
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


class Downtime:
    """How long /health did not answer 200: from the first bad question to the next good answer."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self.longest_s = 0.0
        self._down_since_s: float | None = None

    def note(self, healthy: bool, asked_s: float, answered_s: float) -> None:
        """One poll."""
        if not healthy and self._down_since_s is None:
            self._down_since_s = asked_s
        elif healthy and self._down_since_s is not None:
            self.end(answered_s)

    def end(self, now_s: float) -> None:
        """Nobody asks any more: what is down counts until now."""
        if self._down_since_s is None:
            return
        down_s = now_s - self._down_since_s
        self.total_s += down_s
        self.longest_s = max(self.longest_s, down_s)
        self._down_since_s = None


class Recoveries:
    """Those the server lists, gathered over time: a router that dies takes its list along."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, float], dict[str, Any]] = {}

    def note(self, listed: Iterable[dict[str, Any]]) -> None:
        """What /v1/experts lists now."""
        for recovery in listed:
            key = (str(recovery.get("cause")), float(recovery.get("at_s", 0.0)))
            self._seen.setdefault(key, recovery)

    def forget(self) -> None:
        """Count from here on: what is listed already stays known and is not counted."""
        self._seen = {key: {} for key in self._seen}

    def summary(self, metric_before: float, metric_after: float | None) -> dict[str, Any]:
        """How many, by role and cause of each replaced actor, and how long they took.

        `metric` is by how much windrose_recoveries_total grew; a counter that shrank began anew.
        """
        new = [recovery for recovery in self._seen.values() if recovery]
        replaced = Counter(
            f"{role}:{recovery.get('cause')}"
            for recovery in new
            for role, _rank in recovery.get("dead", ())
        )
        times_s = [float(recovery["total_s"]) for recovery in new if "total_s" in recovery]
        spread = over_rounds(times_s)
        grown = None if metric_after is None else metric_after - metric_before
        return {
            "n": len(new),
            "replaced": dict(sorted(replaced.items())),
            "metric": metric_after if grown is not None and grown < 0 else grown,
            "total_s": spread and {key: spread[key] for key in ("median", "min", "max")},
        }
