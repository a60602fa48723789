"""What is known of the deployment, as Prometheus text. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from actors.metrics.metric_table import METRICS, Metric
from actors.metrics.tally import Counts, Series, Value

Gauges = Mapping[Series, float]


class _Written(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> list[Family]:
        return self._families


def metrics_text(counts: Counts, gauges: Gauges, model_name: str) -> str:
    """All metrics of the table, each series once; one of no series has its help only."""
    values: dict[str, list[tuple[Series, Value]]] = {metric.name: [] for metric in METRICS}
    for series, value in counts.items():
        values[series[0]].append((series, value))
    for series, gauge in gauges.items():
        values[series[0]].append((series, (gauge,)))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(
        _Written(_family(metric, values[metric.name], model_name) for metric in METRICS)
    )
    return generate_latest(registry).decode()


def _family(metric: Metric, values: list[tuple[Series, Value]], model_name: str) -> Family:
    labels = ["model_name", *metric.labels]
    family: GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily
    if metric.kind == "histogram":
        family = HistogramMetricFamily(metric.name, metric.help, labels=labels)
        bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
        for series, (*counts, total) in sorted(values):
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric([model_name, *series[1:]], buckets, total)
        return family
    make = GaugeMetricFamily if metric.kind == "gauge" else CounterMetricFamily
    family = make(metric.name, metric.help, labels=labels)
    for series, (value,) in sorted(values, key=_natural):
        family.add_metric([model_name, *series[1:]], value)
    return family


def _natural(item: tuple[Series, Value]) -> list[tuple[int, str]]:
    """Layer 10 comes after layer 9."""
    return [(int(part) if part.isdigit() else -1, part) for part in item[0]]
