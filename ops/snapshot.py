"""What a server says of itself at one moment, and what happened between two of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from ops.client import ServerError, get_json, get_text
from ops.experts import ExpertsBody

Key = tuple[str, tuple[tuple[str, str], ...]]  # a sample's name, and its labels in order


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every sample of /metrics and the body of /v1/experts. `at_s` is monotonic."""

    at_s: float
    samples: Mapping[Key, float]
    experts: ExpertsBody

    def total(self, name: str, **where: str) -> float:
        """The sum of a sample over all series with these labels; 0 where there are none."""
        wanted = set(where.items())
        return sum(
            value
            for (sample, labels), value in self.samples.items()
            if sample == name and wanted <= set(labels)
        )


@dataclass(frozen=True, slots=True)
class Interval:
    """From one snapshot to a later one; what is counted is counted between them."""

    before: Snapshot
    now: Snapshot

    @property
    def seconds(self) -> float:
        """How long it was."""
        return max(self.now.at_s - self.before.at_s, 1e-9)

    def grown(self, name: str, **where: str) -> float:
        """What a counter has grown by."""
        return max(0.0, self.now.total(name, **where) - self.before.total(name, **where))

    def rate(self, name: str, **where: str) -> float:
        """The same per second."""
        return self.grown(name, **where) / self.seconds

    def mean(self, name: str) -> float | None:
        """Of a histogram's measurements; None where there were none."""
        count = self.grown(f"{name}_count")
        return self.grown(f"{name}_sum") / count if count else None

    def tokens(self) -> list[list[int]]:
        """Choices per [layer][expert] in between; all so far where a server has begun anew."""
        now, before = self.now.experts.tokens, self.before.experts.tokens
        if len(now) != len(before):
            return now
        grown = [[n - b for n, b in zip(*rows, strict=True)] for rows in zip(now, before)]
        return now if min(map(min, grown), default=0) < 0 else grown


def samples_of(text: str) -> dict[Key, float]:
    """The samples of a text in Prometheus' format. ValueError where it is none."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def take(client: httpx.Client) -> Snapshot:
    """Ask a server.

    Raises:
        ServerError: it does not answer, or not as Windrose.
    """
    try:
        body = ExpertsBody.model_validate(get_json(client, "/v1/experts"))
        return Snapshot(time.monotonic(), samples_of(get_text(client, "/metrics")), body)
    except (ValidationError, ValueError) as error:
        raise ServerError(f"{client.base_url} does not answer as Windrose does") from error
