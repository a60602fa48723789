"""What the actors and the router of a pipeline say, for tests of what is made of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from prometheus_client.parser import text_string_to_metric_families

from actors.metrics.metrics_text import metrics_text
from actors.metrics.tally import added
from actors.pipeline.pipeline_report import BalanceReport, PipelineReport
from actors.pipeline.pipeline_tally import PipelineTally, shares
from actors.pipeline.recovery_log import Recovery, RecoveryLog
from actors.ranks.actor_stats import ActorIdentity, ActorStats
from actors.ranks.start_times import StartTimes


def actor(
    rank: int, role: Literal["attention", "expert"], pipeline: str = "p0", **fields: Any
) -> ActorStats:
    identity = ActorIdentity(pipeline, rank, role, 4000 + rank, "10.0.0.1", "cpu")
    stats = ActorStats(identity, "serving", None, 1000 * (rank + 1), 7, 7)
    return replace(stats, **fields)


PLACEMENT = (((2,), (2,), (3,)), ((3,), (2,), (2, 3)))
APART = [
    actor(
        0,
        "attention",
        placement_version=5,
        placement=PLACEMENT,
        expert_tokens=[[6, 3, 0], [1, 1, 7]],
        num_running=4,
        num_waiting=2,
        kv_cache_usage=0.25,
        num_preemptions=3,
        prefix_cache_queries=70,
        prefix_cache_hits=48,
        num_rows=9,
        num_steps=5,
        wait_s=3.5,
        compute_s=4.5,
        communication_s=0.75,
        micro_batches=2,
    ),
    actor(1, "attention", placement_version=5, placement=PLACEMENT, expert_tokens=[[0, 1, 2]] * 2),
    actor(
        2,
        "expert",
        num_rows=30,
        wait_s=1.5,
        compute_s=2.25,
        num_steps=6,
        start=StartTimes(10.0, 11.5, 20.0, 20.25),
    ),
    actor(
        3, "expert", num_rows=12, wait_s=0.5, compute_s=0.125, communication_s=0.0625, num_steps=6
    ),
]

TOKENS = [[6, 4, 2], [1, 2, 9]]
INGRESS = ActorIdentity("", -1, "ingress", 77, "10.0.0.1", "cpu")


def report(*recoveries: Recovery, **fields: Any) -> PipelineReport:
    log = RecoveryLog()
    for recovery in recoveries:
        log.add(recovery)
    plain = PipelineReport(
        router=ActorIdentity("p0", -1, "router", 55, "10.0.0.1", "cpu"),
        serving=True,
        obstacle=None,
        num_attention=1,
        attention=(),
        unfinished=0,
        max_model_len=64,
        placement_version=5,
        target=PLACEMENT,
        filling=(),
        faults={},
        num_spares=0,
        recoveries=tuple(log.recent),
        recovery_counts=log.counts(),
        changes={"applied": 0, "unchanged": 0, "refused": 0, "failed": 0},
        balance=BalanceReport("advise", (), {}),
    )
    return replace(plain, **fields)


def samples(
    stats: list[ActorStats], told: PipelineReport | None = None
) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample: (name, label values by label, without the model's) -> value."""
    tally = PipelineTally("p0", redundant_experts=1)
    tally.take(1.0, {one.identity.rank: one for one in stats})
    view = tally.view(1.0, {}, told or report())
    text = metrics_text(
        added(view.tally.values()), dict(view.gauges) | shares(view.recent_tokens), "tiny"
    )
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == "tiny"
            assert (family.type == "counter") == sample.name.endswith("_total"), sample
            if family.type == "histogram":
                assert sample.name.removeprefix(family.name) in ("_bucket", "_sum", "_count")
            key = (sample.name, tuple(labels[label] for label in sorted(labels)))
            assert key not in found
            found[key] = sample.value
    return found
