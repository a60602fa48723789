"""What Ray's metrics are told: over any looks the steps sum to what was counted, by bucket."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from itertools import pairwise
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.http.request_metrics import RequestMetrics
from actors.metrics.metric_steps import increments, middles, observations
from actors.metrics.metric_table import BY_NAME, ITL, METRICS, TTFT
from actors.metrics.ray_metrics import RayExport
from actors.metrics.tally import Counts, Value

HAPPENINGS = st.lists(
    st.tuples(st.sampled_from(["first", "more", "refused"]), st.floats(1e-4, 500.0)), max_size=30
)


def happened(metrics: RequestMetrics, kind: str, value: float) -> None:
    if kind == "first":
        metrics.first_tokens(1, value)
    elif kind == "more":
        metrics.more_tokens(3, value)
    else:
        metrics.refused([400, 429, 503][int(value) % 3])  # type: ignore[arg-type]


@given(HAPPENINGS, st.integers(1, 5))
def test_steps_sum_to_the_counts(happenings: list[tuple[str, float]], every: int) -> None:
    metrics = RequestMetrics()
    metrics.refused = lambda status: metrics._count(  # type: ignore[method-assign]
        BY_NAME["windrose_requests_refused"], 1, str(status)
    )
    looks: list[Counts] = [{}]
    for i, (kind, value) in enumerate(happenings):
        happened(metrics, kind, value)
        if i % every == 0:
            looks.append(metrics.counts())
    looks.append(metrics.counts())
    counters: Counter[Any] = Counter()
    buckets: dict[Any, list[float]] = {}
    for before, now in pairwise(looks):
        for series, amount in increments(before, now):
            assert amount > 0
            counters[series] += amount  # type: ignore[assignment]
        for series, value, times in observations(before, now):
            metric = BY_NAME[series[0]]
            found = buckets.setdefault(series, [0.0] * (len(metric.buckets) + 1))
            found[bisect_left(metric.buckets, value)] += times
    for series, told in looks[-1].items():
        if BY_NAME[series[0]].kind == "counter":
            assert counters[series] == told[0]
        else:
            assert buckets.get(series, [0.0] * (len(told) - 1)) == list(told[:-1])


@pytest.mark.parametrize("metric", [one for one in METRICS if one.buckets], ids=lambda m: m.name)
def test_a_middle_lies_in_its_bucket(metric: Any) -> None:
    assert [bisect_left(metric.buckets, value) for value in middles(metric)] == [
        *range(len(metric.buckets) + 1)
    ]


class Told:
    """As ray.util.metrics: remembers what it is told."""

    log: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, name: str, text: str, *rest: Any) -> None:
        self._name = name
        assert rest[-1][0] == "model_name"

    def __getattr__(self, verb: str) -> Any:
        return lambda value, tags: self.log.append((verb, self._name, value, tuple(tags.values())))


def test_what_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(f"ray.util.metrics.{kind}", Told)
    Told.log.clear()
    export = RayExport("m")
    running = ("windrose_num_requests_running", "p", "0")
    counts: dict[Any, Value] = {("windrose_engine_steps", "p", "0"): (3.0,)}
    export.export(counts, {running: 2.0})
    assert Told.log == [
        ("inc", "windrose_engine_steps", 3.0, ("m", "p", "0")),
        ("set", "windrose_num_requests_running", 2.0, ("m", "p", "0")),
    ]
    Told.log.clear()
    metrics = RequestMetrics()
    metrics.more_tokens(2, 0.05)
    export.export(counts | metrics.counts(), {})
    told = [one for one in Told.log if one[0] != "inc"]
    assert told == [
        *[("observe", ITL.name, 0.025, ("m",))] * 2,
        ("set", "windrose_num_requests_running", 0.0, ("m", "p", "0")),
    ]
    assert ("inc", "windrose_generation_tokens", 2.0, ("m",)) in Told.log
    assert not any(one[1] == TTFT.name for one in Told.log)
    Told.log.clear()
    export.close()
    assert Told.log == []
