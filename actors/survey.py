"""What the actors say of themselves, put together for people and for Prometheus. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from actors.actor_stats import ActorIdentity, ActorStats
from actors.pipeline_report import PipelineReport
from actors.recovery_log import BUCKETS_S


def total_tokens(stats: Sequence[ActorStats]) -> list[list[int]]:
    """Rows per [layer][expert], summed over all attention actors.

    While an upgrade replaces a model by one of another shape, over those of the first one's.
    """
    tables = [one.expert_tokens for one in stats if one.expert_tokens]
    if not tables:
        return []
    tables = [table for table in tables if _shape(table) == _shape(tables[0])]
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]


def _shape(table: Sequence[Sequence[int]]) -> list[int]:
    return [len(row) for row in table]


def balancedness(tokens: Sequence[Sequence[int]]) -> float:
    """Mean over layers of mean / max load of the layer's experts; 1.0 is even (or no load)."""
    ratios = [sum(row) / len(row) / max(row) for row in tokens if max(row) > 0]
    return sum(ratios) / len(ratios) if ratios else 1.0


def experts_json(
    stats: Sequence[ActorStats], reports: Sequence[PipelineReport], ingress: ActorIdentity
) -> dict[str, object]:
    """The body of GET /v1/experts, as the ingress `ingress` answers it.

    `placement[layer][expert]` lists ranks; with no expert actors it is every attention rank. With
    several pipelines it is the first one's; `tokens` are all pipelines' together. A pipeline's
    `target` is what holds once every rank has an actor.
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
            *(
                _actor_json(one.identity, one.phase)
                | {"weights_bytes": one.weights_bytes, "start": one.start.durations()}
                for one in stats
            ),
            *(
                _actor_json(report.router, "serving" if report.serving else "recovering")
                | {"weights_bytes": 0}
                for report in reports
            ),
            _actor_json(ingress, "serving") | {"weights_bytes": 0},
        ],
        "tokens": tokens,
        "balancedness": balancedness(tokens),
        "pipelines": [_pipeline_json(report) for report in reports],
        "recoveries": [
            {**asdict(recovery), "total_s": recovery.total_s}
            for report in reports
            for recovery in report.recoveries
        ],
    }


def _actor_json(identity: ActorIdentity, phase: str) -> dict[str, object]:
    rank = None if identity.rank < 0 else identity.rank
    return {**asdict(identity), "rank": rank, "phase": phase}


def _pipeline_json(report: PipelineReport) -> dict[str, object]:
    return {
        "pipeline": report.router.pipeline,
        "serving": report.serving,
        "obstacle": report.obstacle,
        "placement_version": report.placement_version,
        "target": report.target,
        "replacing": [{"rank": rank, "fault": report.faults.get(rank)} for rank in report.filling],
        "spares": report.num_spares,
        "changes": report.changes,
        "balance": asdict(report.balance),
    }


class _EngineCollector(Collector):
    """One scrape's worth of actor metrics."""

    def __init__(
        self, stats: Sequence[ActorStats], reports: Sequence[PipelineReport], model_name: str
    ) -> None:
        self._stats = stats
        self._reports = reports
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
            ("recent_ttft_seconds", "Time to the first token lately", "recent_ttft_s"),
            ("placement_version", "Version of the expert placement", "placement_version"),
            ("micro_batches", "Micro-batches of the last step", "micro_batches"),
        ):
            gauge = GaugeMetricFamily(f"windrose_{name}", text, labels=labels)
            for one in attention:
                gauge.add_metric(self._where(one), getattr(one, value))
            families.append(gauge)
        for name, text, value, actors in (
            ("num_preemptions", "Sequences preempted", "num_preemptions", attention),
            ("prefix_cache_queries", "Tokens looked up", "prefix_cache_queries", attention),
            ("prefix_cache_hits", "Of these, found cached", "prefix_cache_hits", attention),
            ("engine_steps", "Steps run", "num_steps", attention),
            ("engine_rows", "Rows run", "num_rows", attention),
            ("expert_actor_rows", "Rows an expert actor ran, over layers", "num_rows", expert),
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
        families.append(self._step_seconds([*attention, *expert]))
        return families + self._recoveries() + self._changes()

    def _step_seconds(self, actors: Sequence[ActorStats]) -> Metric:
        seconds = CounterMetricFamily(
            "windrose_step_seconds",
            "Where the time of steps went, by role: waiting for the other one, work, messages",
            labels=["model_name", "pipeline", "rank", "role", "phase"],
        )
        for one in actors:
            for phase in ("wait", "compute", "communication"):
                spent_s = getattr(one, f"{phase}_s")
                seconds.add_metric([*self._where(one), one.identity.role, phase], spent_s)
        return seconds

    def _recoveries(self) -> list[Metric]:
        lost = CounterMetricFamily(
            "windrose_recoveries",
            "Actors lost and replaced, by role and cause",
            labels=["model_name", "pipeline", "role", "cause"],
        )
        seconds = HistogramMetricFamily(
            "windrose_recovery_seconds",
            "From the notice of a loss to the next step",
            labels=["model_name", "pipeline"],
        )
        for report in self._reports:
            where = [self._model_name, report.router.pipeline]
            counts = report.recovery_counts
            for (role, cause), count in sorted(counts.lost.items()):
                lost.add_metric([*where, role, cause], count)
            so_far, buckets = 0, []
            for bound, count in zip(
                [*map(floatToGoString, BUCKETS_S), "+Inf"], counts.bucket_counts, strict=True
            ):
                so_far += count
                buckets.append((bound, so_far))
            seconds.add_metric(where, buckets, counts.total_s)
        return [lost, seconds]

    def _changes(self) -> list[Metric]:
        changes = CounterMetricFamily(
            "windrose_placement_changes",
            "Changes of the placement that were asked for, by outcome",
            labels=["model_name", "pipeline", "outcome"],
        )
        proposals = CounterMetricFamily(
            "windrose_balance_proposals",
            "What the balancer made of the load, by outcome",
            labels=["model_name", "pipeline", "outcome"],
        )
        replacing = GaugeMetricFamily(
            "windrose_ranks_replacing",
            "Ranks that wait for an actor",
            labels=["model_name", "pipeline"],
        )
        spares = GaugeMetricFamily(
            "windrose_spare_actors", "Idle actors", labels=["model_name", "pipeline"]
        )
        for report in self._reports:
            where = [self._model_name, report.router.pipeline]
            replacing.add_metric(where, len(report.filling))
            spares.add_metric(where, report.num_spares)
            for outcome, count in sorted(report.changes.items()):
                changes.add_metric([*where, outcome], count)
            for outcome, count in sorted(report.balance.counts.items()):
                proposals.add_metric([*where, outcome], count)
        return [changes, proposals, replacing, spares]

    def _where(self, one: ActorStats) -> list[str]:
        return [self._model_name, one.identity.pipeline, str(one.identity.rank)]


def metrics_text(
    stats: Sequence[ActorStats], reports: Sequence[PipelineReport], model_name: str
) -> str:
    """The actors' and routers' metrics as Prometheus text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_EngineCollector(stats, reports, model_name))
    return generate_latest(registry).decode()
