"""What has been counted since the last look, as what a counter is told: sums become steps. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from actors.metrics.metric_table import BY_NAME, Metric
from actors.metrics.tally import Counts, Series, Value


def increments(before: Counts, now: Counts) -> Iterator[tuple[Series, float]]:
    """How much every counter that is not a histogram has grown; those that have."""
    for series, value in now.items():
        if BY_NAME[series[0]].kind == "counter":
            grown = value[0] - before.get(series, (0.0,))[0]
            if grown > 0:
                yield series, grown


def observations(before: Counts, now: Counts) -> Iterator[tuple[Series, float, int]]:
    """What every histogram has observed, and how often: a value that stands for its bucket."""
    for series, value in now.items():
        metric = BY_NAME[series[0]]
        if metric.kind != "histogram":
            continue
        old: Value = before.get(series, (0.0,) * len(value))
        for middle, then, since in zip(middles(metric), old, value):  # the sums are left out
            if since > then:
                yield series, middle, round(since - then)


def middles(metric: Metric) -> Sequence[float]:
    """Of the buckets of a histogram; of the last one, which has no end, twice its beginning."""
    bounds = (0.0, *metric.buckets)
    return [*((low + high) / 2 for low, high in pairwise(bounds)), 2 * bounds[-1]]
