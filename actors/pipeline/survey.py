"""What the actors say of themselves, put together for people: the JSON of /v1/experts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from actors.pipeline.pipeline_report import PipelineReport
from actors.ranks.actor_stats import ActorIdentity, ActorStats


def total_tokens(tables: Iterable[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Rows per [layer][expert], summed over tables of which some may be empty.

    While an upgrade replaces a model by one of another shape, over those of the first one's.
    """
    filled = [table for table in tables if table]
    filled = [table for table in filled if _shape(table) == _shape(filled[0])]
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*filled, strict=True)]


def _shape(table: Sequence[Sequence[float]]) -> list[int]:
    return [len(row) for row in table]


def balancedness(tokens: Sequence[Sequence[float]]) -> float:
    """Mean over layers of mean / max load of the layer's experts; 1.0 is even (or no load)."""
    ratios = [sum(row) / len(row) / max(row) for row in tokens if max(row) > 0]
    return sum(ratios) / len(ratios) if ratios else 1.0


def experts_json(
    stats: Sequence[ActorStats],
    reports: Sequence[PipelineReport],
    tokens: Sequence[Sequence[int]],
    repeat_rates: Mapping[str, Sequence[float]],
    ingress: ActorIdentity,
) -> dict[str, object]:
    """The body of GET /v1/experts, as the ingress `ingress` answers it.

    `placement[layer][expert]` lists ranks; with no expert actors it is every attention rank, and
    while no attention actor answers none. With several pipelines it is the first one's; `tokens`
    are all pipelines' together, counted by actors that are gone included, and `repeat_rates`
    likewise, by choice and layer. A pipeline's `target` is what holds once every rank has an actor.
    """
    attention = [one for one in stats if one.identity.role == "attention"]
    placement: list[list[list[int]]] = [[[] for _ in row] for row in tokens]
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
        "repeat_rates": repeat_rates,
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
