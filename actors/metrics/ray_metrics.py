"""Ray's own export of metrics: each node's agent shows what the processes there have counted.

Every process exports what it counts itself: a router its pipeline's, whose actors may die, an
ingress its requests'. So every series is there once, told apart by Ray's label WorkerId, and nobody
needs to lead. Names get Ray's prefix `ray_`; help and labels are those of `metric_table.py`.

Ray keeps the series of a process that has died: counters stand still, and so would gauges, which is
why `close` sets them to 0. Its histograms know buckets only, so their sums are of bucket middles.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from ray.util import metrics as ray_metrics

from actors.metrics.metric_steps import increments, observations
from actors.metrics.metric_table import BY_NAME, Metric
from actors.metrics.metrics_text import Gauges
from actors.metrics.tally import Counts, Series

EXPORT_PERIOD_S = 5.0

logger = logging.getLogger(__name__)


class RayExport:
    """Tells Ray's metrics of one process. Not for two threads at once."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._told: Counts = {}
        self._gauges: dict[Series, float] = {}
        self._made: dict[str, Any] = {}

    def export(self, counts: Counts, gauges: Gauges) -> None:
        """What has been counted so far, and how it is now; a gauge that is gone is 0."""
        for series, amount in increments(self._told, counts):
            self._metric(series).inc(amount, self._tags(series))
        for series, value, times in observations(self._told, counts):
            histogram, tags = self._metric(series), self._tags(series)
            for _ in range(times):
                histogram.observe(value, tags)
        for series, value in {**dict.fromkeys(self._gauges, 0.0), **gauges}.items():
            self._metric(series).set(value, self._tags(series))
        self._told, self._gauges = dict(counts), dict(gauges)

    def close(self) -> None:
        """This process ends: it has nothing any more."""
        self.export(self._told, {})

    def _metric(self, series: Series) -> Any:
        name = series[0]
        if name not in self._made:
            self._made[name] = _made(BY_NAME[name])
        return self._made[name]

    def _tags(self, series: Series) -> dict[str, str]:
        labels = zip(BY_NAME[series[0]].labels, series[1:], strict=True)
        return {"model_name": self._model_name, **dict(labels)}


def _made(metric: Metric) -> Any:
    tags = ("model_name", *metric.labels)
    if metric.kind == "histogram":
        return ray_metrics.Histogram(metric.name, metric.help, [*metric.buckets], tags)
    kind = ray_metrics.Counter if metric.kind == "counter" else ray_metrics.Gauge
    return kind(metric.name, metric.help, tags)


def keep_exporting(export: RayExport, read: Callable[[], tuple[Counts, Gauges]]) -> threading.Event:
    """Export what `read` gives every few seconds, in a thread; set the event to end it.

    A failure ends it too, and nothing else: metrics are also at the serving port.
    """
    ended = threading.Event()

    def loop() -> None:
        try:
            while not ended.wait(EXPORT_PERIOD_S):
                export.export(*read())
            export.export(*read())
            export.close()
        except Exception:
            logger.warning("metrics are not told to Ray any more", exc_info=True)

    threading.Thread(target=loop, daemon=True, name="ray-metrics").start()
    return ended
