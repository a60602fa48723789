"""What only the ingress can measure: what a client sees of a request. Of one ingress."""

from __future__ import annotations

from http import HTTPStatus
from typing import get_args

from actors.messages import FinishReason
from actors.metrics import metric_table as table
from actors.metrics.histogram import Histogram
from actors.metrics.metric_table import Metric
from actors.metrics.tally import Series, Value


class RequestMetrics:
    """Counters and histograms of one ingress since it began."""

    def __init__(self) -> None:
        self._histograms = {
            metric.name: Histogram(metric.buckets) for metric in (table.TTFT, table.ITL, table.E2E)
        }
        self._counters: dict[Series, float] = {
            (table.PROMPT_TOKENS.name,): 0.0,
            (table.GENERATION_TOKENS.name,): 0.0,
            **{(table.FINISHED.name, reason): 0.0 for reason in get_args(FinishReason)},
        }

    def accepted(self, prompt_tokens: int) -> None:
        """A sequence was handed to the token source."""
        self._count(table.PROMPT_TOKENS, prompt_tokens)

    def first_tokens(self, count: int, since_arrival_s: float) -> None:
        """The first event of a sequence came, with `count` tokens."""
        self._observe(table.TTFT, since_arrival_s)
        self._count(table.GENERATION_TOKENS, count)

    def more_tokens(self, count: int, gap_s: float) -> None:
        """`count` tokens came `gap_s` after the event before; each counts as an equal share."""
        self._observe(table.ITL, gap_s / count, count)
        self._count(table.GENERATION_TOKENS, count)

    def finished(self, reason: str, since_arrival_s: float) -> None:
        """A sequence ended with "stop" or "length", or was left by its client ("abort")."""
        self._count(table.FINISHED, 1, reason)
        self._observe(table.E2E, since_arrival_s)

    def refused(self, status: HTTPStatus) -> None:
        """A request ended in an error."""
        self._count(table.REFUSED, 1, str(status.value))

    def counts(self) -> dict[Series, Value]:
        """All of it so far."""
        # In one go: another thread may ask.
        counts = {series: (value,) for series, value in [*self._counters.items()]}
        told = {(name,): one.value for name, one in self._histograms.items()}
        return counts | told

    def _observe(self, metric: Metric, value: float, times: int = 1) -> None:
        self._histograms[metric.name].observe(value, times)

    def _count(self, metric: Metric, amount: float, *labels: str) -> None:
        series = (metric.name, *labels)
        self._counters[series] = self._counters.get(series, 0.0) + amount
