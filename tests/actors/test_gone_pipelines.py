from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from actors.metrics.metric_table import BY_NAME, METRICS
from actors.metrics.metrics_text import metrics_text
from actors.metrics.tally import Counts, Series, Value
from actors.pipeline.gone_pipelines import folded

NAMES = ("a", "b", "c")
COUNTED = [metric for metric in METRICS if metric.kind != "gauge"]


@st.composite
def counts(draw: st.DrawFn) -> dict[Series, Value]:
    made: dict[Series, Value] = {}
    for _ in range(draw(st.integers(0, 12))):
        metric = draw(st.sampled_from(COUNTED))
        labels = [
            draw(st.sampled_from(NAMES if label == "pipeline" else ("0", "1")))
            for label in metric.labels
        ]
        size = len(metric.buckets) + 2 if metric.buckets else 1
        made[metric.name, *labels] = tuple(float(draw(st.integers(0, 9))) for _ in range(size))
    return made


def sums(counts: Counts) -> dict[Series, list[float]]:
    """Without pipeline and rank."""
    found: dict[Series, list[float]] = defaultdict(list)
    for series, value in counts.items():
        labels = BY_NAME[series[0]].labels
        rest = [one for name, one in zip(labels, series[1:]) if name not in ("pipeline", "rank")]
        key = (series[0], *rest)
        found[key] = [sum(pair) for pair in zip(found[key], value)] or list(value)
    return found


@given(counts(), st.sets(st.sampled_from(NAMES)))
def test_every_sum_stays_and_the_living_are_as_they_were(
    before: dict[Series, Value], living: set[str]
) -> None:
    after = folded(before, living)
    assert sums(after) == sums(before)
    pipelines = set()
    for series in after:
        labels = dict(zip(BY_NAME[series[0]].labels, series[1:]))
        if labels.get("pipeline", "a") in living or "pipeline" not in labels:
            assert after[series] == before[series]
        else:
            pipelines.add(labels["pipeline"])
            assert labels.get("rank", "all") == "all"
    assert len(pipelines) <= 1, "one series for all that are gone"
    metrics_text(after, {}, "m")


def test_however_many_die_there_are_no_more_series() -> None:
    sizes = set()
    for dead in (1, 10, 100):
        known: dict[Series, Value] = {}
        for i in range(dead):
            for rank in range(4):
                known["windrose_engine_steps", f"dead-{i}", str(rank)] = (1.0,)
        known["windrose_engine_steps", "alive", "0"] = (5.0,)
        after = folded(known, {"alive"})
        sizes.add(len(after))
        assert after["windrose_engine_steps", f"{dead} gone", "all"] == (4.0 * dead,)
    assert sizes == {2}
