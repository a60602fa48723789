"""What the actors say of themselves, put together for people and for Prometheus. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from actors.actor_stats import ActorStats


def total_tokens(stats: Sequence[ActorStats]) -> list[list[int]]:
    """Rows per [layer][expert], summed over all attention actors."""
    tables = [one.expert_tokens for one in stats if one.expert_tokens]
    if not tables:
        return []
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]


def balancedness(tokens: Sequence[Sequence[int]]) -> float:
    """Mean over layers of mean / max load of the layer's experts; 1.0 is even (or no load)."""
    ratios = [sum(row) / len(row) / max(row) for row in tokens if max(row) > 0]
    return sum(ratios) / len(ratios) if ratios else 1.0


def experts_json(stats: Sequence[ActorStats]) -> dict[str, object]:
    """The body of GET /v1/experts.

    `placement[layer][expert]` lists ranks; with no expert actors it is every attention rank. With
    several pipelines it is the first one's; `tokens` are all pipelines' together.
    """
    attention = [one for one in stats if one.identity.role == "attention"]
    tokens = total_tokens(attention)
    placement: list[list[list[int]]] = []
    version = 0
    if attention:
        first = attention[0]
        version = first.placement_version
        placement = [[list(ranks) for ranks in row] for row in first.placement]
        if not placement:
            ranks = [
                one.identity.rank
                for one in attention
                if one.identity.pipeline == first.identity.pipeline
            ]
            placement = [[ranks for _ in row] for row in tokens]
    return {
        "placement_version": version,
        "placement": placement,
        "actors": [
            {
                "pipeline": one.identity.pipeline,
                "rank": one.identity.rank,
                "role": one.identity.role,
                "pid": one.identity.pid,
                "node": one.identity.node,
                "device": one.identity.device,
                "phase": one.phase,
                "weights_bytes": one.weights_bytes,
            }
            for one in stats
        ],
        "tokens": tokens,
        "balancedness": balancedness(tokens),
        "recoveries": [
            {**asdict(recovery), "total_s": recovery.total_s}
            for one in attention
            for recovery in one.recoveries
        ],
    }


class _EngineCollector(Collector):
    """One scrape's worth of actor metrics."""

    def __init__(self, stats: Sequence[ActorStats], model_name: str) -> None:
        self._stats = stats
        self._model_name = model_name

    def collect(self) -> list[Metric]:
        """All families, each series once."""
        attention = [one for one in self._stats if one.identity.role == "attention"]
        expert = [one for one in self._stats if one.identity.role == "expert"]
        labels = ["model_name", "pipeline", "rank"]
        families: list[Metric] = []
        for name, text, value in (
            ("num_requests_running", "Sequences in the running batch", "num_running"),
            ("num_requests_waiting", "Sequences waiting to be admitted", "num_waiting"),
            ("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", "kv_cache_usage"),
            ("placement_version", "Version of the expert placement", "placement_version"),
        ):
            gauge = GaugeMetricFamily(f"windrose_{name}", text, labels=labels)
            for one in attention:
                gauge.add_metric(self._where(one), getattr(one, value))
            families.append(gauge)
        for name, text, value, actors in (
            ("num_preemptions", "Sequences preempted", "num_preemptions", attention),
            ("engine_steps", "Steps run", "num_steps", attention),
            ("engine_rows", "Rows run", "num_rows", attention),
            ("expert_actor_rows", "Rows an expert actor ran, over layers", "num_rows", expert),
            ("expert_actor_wait_seconds", "Time waiting for rows", "wait_s", expert),
            ("expert_actor_compute_seconds", "Time from rows to sums", "compute_s", expert),
        ):
            counter = CounterMetricFamily(f"windrose_{name}", text, labels=labels)
            for one in actors:
                counter.add_metric(self._where(one), getattr(one, value))
            families.append(counter)
        tokens = CounterMetricFamily(
            "windrose_expert_tokens",
            "Rows that chose an expert, per layer",
            labels=["model_name", "layer", "expert"],
        )
        for layer, row in enumerate(total_tokens(attention)):
            for expert_id, count in enumerate(row):
                tokens.add_metric([self._model_name, str(layer), str(expert_id)], count)
        families.append(tokens)
        families += self._recoveries(attention)
        return families

    def _recoveries(self, attention: Sequence[ActorStats]) -> list[Metric]:
        total = CounterMetricFamily(
            "windrose_recoveries",
            "Actors replaced, by role and cause",
            labels=["model_name", "role", "cause"],
        )
        seconds = CounterMetricFamily(
            "windrose_recovery_seconds",
            "Time from the notice of a death to the next step, summed",
            labels=["model_name"],
        )
        recoveries = [recovery for one in attention for recovery in one.recoveries]
        replaced = Counter(
            (role, recovery.cause) for recovery in recoveries for role, _rank in recovery.dead
        )
        for (role, cause), count in sorted(replaced.items()):
            total.add_metric([self._model_name, role, cause], count)
        seconds.add_metric([self._model_name], sum(recovery.total_s for recovery in recoveries))
        return [total, seconds]

    def _where(self, one: ActorStats) -> list[str]:
        return [self._model_name, one.identity.pipeline, str(one.identity.rank)]


def metrics_text(stats: Sequence[ActorStats], model_name: str) -> str:
    """The actors' metrics as Prometheus text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_EngineCollector(stats, model_name))
    return generate_latest(registry).decode()
