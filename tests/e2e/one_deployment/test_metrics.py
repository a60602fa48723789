"""The metrics of a deployment are one deployment's: whoever answers, and whoever has died."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from actors.metrics.metric_table import BY_NAME, METRICS
from ops.grafana.boards import DASHBOARDS
from tests.e2e.prometheus import PROMETHEUS, scraping
from tests.e2e.streams import experts_of, finished, ranks_of, start

STREAMS, MAX_TOKENS = 8, 300
RANKS = [0, 1, 2, 3]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(url: str) -> Samples:
    """Every sample of /metrics; a series that is there twice is an error."""
    found: Samples = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def total(samples: Samples, name: str) -> float:
    values = [value for (sample, _), value in samples.items() if sample == name]
    assert values, f"no {name}"
    return sum(values)


def summed(samples: Samples) -> Samples:
    """Over pipelines and ranks."""
    sums: Samples = {}
    for (name, labels), value in samples.items():
        key = (name, frozenset(one for one in labels if one[0] not in ("pipeline", "rank")))
        sums[key] = sums.get(key, 0.0) + value
    return sums


class Scraper(threading.Thread):
    """Scrapes again and again; what fell in between is in `fallen`."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._end = threading.Event()
        self.scrapes = 0
        self.fallen: list[str] = []
        self.last: Samples = {}

    def run(self) -> None:
        """What has pipelines is summed over them: those that are gone become one series."""
        grow = {name for one in METRICS if one.kind != "gauge" for name in one.sample_names}
        while not self._end.wait(0.1):
            try:
                now = summed(scrape(self._url))
            except httpx.HTTPError:
                continue  # the ingress that was to answer has died
            for key, before in self.last.items():
                if key[0] in grow and now.get(key, 0.0) < before:
                    self.fallen.append(f"{key}: {before} to {now.get(key)}")
            self.scrapes += 1
            self.last = now

    def stop(self) -> None:
        self._end.set()
        self.join(60.0)


class Load(threading.Thread):
    """Streams one after another, so that at any moment something has just happened."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._end = threading.Event()

    def run(self) -> None:
        body = {"prompt": [1, *range(40, 80)], "max_tokens": 20, "ignore_eos": True}
        while not self._end.is_set():
            httpx.post(f"{self._url}/v1/completions", json=body, timeout=60)

    def stop(self) -> None:
        self._end.set()
        self.join(60.0)


def as_asked(expr: str) -> str:
    """A panel's query with its variables filled in, as Grafana does for "All"."""
    for name, value in (("model", ".*"), ("layer", ".*"), ("__rate_interval", "10s")):
        expr = expr.replace(f"${name}", value)
    assert "$" not in expr
    return expr


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)")
def test_every_panel_shows_something(url: str, tmp_path: Path) -> None:
    load = Load(url)
    load.start()
    with scraping(url, tmp_path) as prometheus:
        queries = {
            (board.uid, panel.title, query.expr): as_asked(query.expr)
            for board in DASHBOARDS
            for panel in board.panels
            for query in panel.queries
        }
        missing, deadline_s = dict(queries), time.monotonic() + 60.0
        while missing and time.monotonic() < deadline_s:
            missing = {k: query for k, query in missing.items() if not prometheus.values(query)}
            time.sleep(0.5)  # a scrape's interval
        load.stop()
        assert [*missing] == []
        groups = prometheus.get("rules")["groups"]
        unwell = [r for group in groups for r in group["rules"] if r.get("lastError")]
        assert len(groups) == 3 and unwell == []
        rows = sum(prometheus.values("windrose_engine_rows_total"))
        deadline_s = time.monotonic() + 20.0
        while rows != (now := total(scrape(url), "windrose_engine_rows_total")):
            assert time.monotonic() < deadline_s, f"{rows} in Prometheus, {now} served"
            time.sleep(0.5)
            rows = sum(prometheus.values("windrose_engine_rows_total"))
        (shares,) = {
            round(share, 6) for share in prometheus.values("sum by (layer) (windrose_expert_share)")
        }
        assert shares == 1.0


def ray_samples() -> dict[str, list[Sample]]:
    """What Ray's agent of this node shows of ours: samples by metric, and its help."""
    import ray

    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(httpx.get(address, timeout=30).text):
        name = family.name.removeprefix("ray_")
        if name in BY_NAME:
            assert (family.type, family.documentation) == (BY_NAME[name].kind, BY_NAME[name].help)
            mine = [one for one in family.samples if one.labels["model_name"] == "watched"]
            found[name] = mine
    return found


def test_rays_own_agent_shows_the_same(url: str) -> None:
    """Each process tells Ray every five seconds what it has counted."""
    finished(start(url, STREAMS, 20))

    def sums(samples: list[Sample], suffix: str) -> float:
        return sum(one.value for one in samples if one.name.endswith(suffix))

    wanted = {
        name: total(scrape(url), name)
        for name in (
            "windrose_generation_tokens_total",
            "windrose_engine_rows_total",
            "windrose_expert_tokens_total",
            "windrose_time_to_first_token_seconds_count",
            "windrose_request_queue_time_seconds_count",
        )
    }
    gauges = {one.name for one in METRICS if one.kind == "gauge"}
    deadline_s = time.monotonic() + 30.0
    while True:
        found = ray_samples()
        everything = [one for samples in found.values() for one in samples]
        there = {name: sums(everything, f"ray_{name}") for name in wanted}
        if there == wanted and gauges <= found.keys():
            break
        assert time.monotonic() < deadline_s, f"{there} of {wanted}, no {gauges - found.keys()}"
        time.sleep(0.5)  # nothing to wait on from outside
    for name, samples in found.items():
        for one in samples:
            assert {"model_name", *BY_NAME[name].labels} <= one.labels.keys()
    (shares,) = {round(sums(found["windrose_expert_share"], "share"), 3)}
    assert shares == 3.0  # of three layers


def test_request_ids_through_haproxy_and_serve(url: str) -> None:
    given = (b"mine/1", b"two words", b"x" * 200, b"caf\xc3\xa9", b"\xff\xfe")
    with httpx.Client(base_url=url) as http:
        ids = []
        for one in given:
            answer = http.get("/version", headers={b"X-Request-Id": one})
            assert answer.status_code == 200
            ids += answer.headers.get_list("x-request-id")
        refused = http.post("/v1/completions", content=b"{", headers={"X-Request-Id": "mine/2"})
    assert ids[0] == "mine/1" and [len(one) for one in ids[1:]] == [32] * 4
    assert refused.status_code == 400
    assert refused.headers.get_list("x-request-id") == ["mine/2"]


def kill(url: str, role: str) -> None:
    pids = [one["pid"] for one in experts_of(url)["actors"] if one["role"] == role]
    os.kill(pids[-1], signal.SIGKILL)


def settled(url: str) -> None:
    """Wait until every rank has an actor again, whatever the death of an ingress breaks."""
    deadline_s = time.monotonic() + 90.0
    while time.monotonic() < deadline_s:
        try:
            ranks_of(url, RANKS)
            return
        except (httpx.HTTPError, AssertionError, TimeoutError):
            time.sleep(0.1)  # the ingress that was asked has died
    raise TimeoutError("not all ranks are there again")


def test_no_counter_goes_backwards_when_actors_and_ingresses_die(url: str) -> None:
    before = scrape(url)
    finished(start(url, STREAMS, MAX_TOKENS))
    calm = scrape(url)

    def grown(name: str) -> float:
        return total(calm, name) - total(before, name)

    assert grown("windrose_generation_tokens_total") == STREAMS * MAX_TOKENS
    assert grown("windrose_request_success_total") == STREAMS
    assert grown("windrose_request_queue_time_seconds_count") == STREAMS
    rows = total(calm, "windrose_engine_rows_total")
    assert total(calm, "windrose_expert_tokens_total") == 3 * 2 * rows
    for role in ("attention", "expert"):
        sent = [
            value
            for (name, labels), value in calm.items()
            if name == "windrose_sent_bytes_total" and ("role", role) in labels
        ]
        assert len(sent) == 2 and min(sent) > 0
    scraper = Scraper(url)
    scraper.start()
    for role in ("expert", "attention", "ingress", "router"):
        streams = start(url, STREAMS, MAX_TOKENS)
        kill(url, role)
        for stream in streams:
            stream.join(120.0)
            assert stream.done or (stream.cut and role == "ingress"), role
        settled(url)
    scrapes = scraper.scrapes
    while scraper.scrapes < scrapes + 3:
        time.sleep(0.05)  # nothing to wait on from outside
    scraper.stop()
    assert scraper.fallen == []
    end = scrape(url)
    assert total(end, "windrose_recoveries_total") >= 2
    assert total(end, "windrose_generation_tokens_total") > (
        total(calm, "windrose_generation_tokens_total") + 3 * STREAMS * MAX_TOKENS
    )
