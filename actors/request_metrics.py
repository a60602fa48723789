"""Prometheus metrics that only the ingress can measure: what a client sees of a request."""

from __future__ import annotations

from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
ITL_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.4, 0.8, 2, 5, 10)
E2E_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200)


class RequestMetrics:
    """Counters and histograms of one ingress, in a registry of their own.

    "Request" means one sequence, as in the engine's metrics: `n` choices count n times.
    """

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name
        self._ttft = self._histogram(
            "windrose_time_to_first_token_seconds", "Arrival to first token", TTFT_BUCKETS_S
        )
        self._itl = self._histogram(
            "windrose_inter_token_latency_seconds", "Between two tokens of a request", ITL_BUCKETS_S
        )
        self._e2e = self._histogram(
            "windrose_e2e_request_latency_seconds", "Arrival to last token", E2E_BUCKETS_S
        )
        self._prompt_tokens = self._counter("windrose_prompt_tokens", "Prompt tokens accepted")
        self._generation_tokens = self._counter("windrose_generation_tokens", "Tokens generated")
        self._success = Counter(
            "windrose_request_success",
            "Requests that ended, by why (abort: the client went away)",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        self._refused = Counter(
            "windrose_requests_refused",
            "Requests answered with an error, by HTTP status",
            ["model_name", "code"],
            registry=self._registry,
        )

    def accepted(self, prompt_tokens: int) -> None:
        """A sequence was handed to the token source."""
        self._prompt_tokens.inc(prompt_tokens)

    def first_tokens(self, count: int, since_arrival_s: float) -> None:
        """The first event of a sequence came, with `count` tokens."""
        self._ttft.observe(since_arrival_s)
        self._generation_tokens.inc(count)

    def more_tokens(self, count: int, gap_s: float) -> None:
        """`count` tokens came `gap_s` after the event before; each counts as an equal share."""
        for _ in range(count):
            self._itl.observe(gap_s / count)
        self._generation_tokens.inc(count)

    def finished(self, reason: str, since_arrival_s: float) -> None:
        """A sequence ended with "stop" or "length", or was left by its client ("abort")."""
        self._success.labels(self._model_name, reason).inc()
        self._e2e.observe(since_arrival_s)

    def refused(self, status: HTTPStatus) -> None:
        """A request ended in an error."""
        self._refused.labels(self._model_name, str(status.value)).inc()

    def text(self) -> str:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry).decode()

    def _histogram(self, name: str, about: str, buckets_s: tuple[float, ...]) -> Histogram:
        family = Histogram(name, about, ["model_name"], registry=self._registry, buckets=buckets_s)
        return family.labels(self._model_name)

    def _counter(self, name: str, about: str) -> Counter:
        family = Counter(name, about, ["model_name"], registry=self._registry)
        return family.labels(self._model_name)
