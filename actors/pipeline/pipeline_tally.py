"""What a pipeline has counted since it began, whoever of its actors has died meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from actors.metrics import metric_table as table
from actors.metrics.metric_table import Metric
from actors.metrics.metrics_text import Gauges
from actors.metrics.tally import Counts, Series, Succession, Tally, Value, joined
from actors.pipeline.pipeline_report import PipelineReport
from actors.placement.load_window import LoadWindow
from actors.ranks.actor_stats import ActorStats

SHARE_WINDOW_S = 60.0

_ATTENTION_COUNTERS = (
    (table.PREEMPTIONS, "num_preemptions"),
    (table.PREFIX_QUERIES, "prefix_cache_queries"),
    (table.PREFIX_HITS, "prefix_cache_hits"),
    (table.ENGINE_STEPS, "num_steps"),
    (table.ENGINE_ROWS, "num_rows"),
)
_ATTENTION_GAUGES = (
    (table.RUNNING, "num_running"),
    (table.WAITING, "num_waiting"),
    (table.KV_USAGE, "kv_cache_usage"),
    (table.PLACEMENT_VERSION, "placement_version"),
    (table.MICRO_BATCHES, "micro_batches"),
    (table.RECENT_TTFT, "recent_ttft_s"),
)
_ROLES = ("attention", "expert")
_CAUSES = ("death", "hang", "link")
_OUTCOMES = ("none", "advised", "applied", "failed")
_PHASES = ("wait", "compute", "communication")


@dataclass(frozen=True, slots=True)
class PipelineView:
    """A router's answer: its pipeline now, and all counts that it has heard of.

    `recent_tokens`: choices per [layer][expert] in the last minute.
    """

    report: PipelineReport
    tally: Tally
    gauges: Gauges
    recent_tokens: Sequence[Sequence[float]]


class PipelineTally:
    """One pipeline's counts, and those of others that its router has been told. Times are given."""

    def __init__(self, pipeline: str, redundant_experts: int) -> None:
        self._pipeline = pipeline
        self._redundant_experts = redundant_experts
        self._heard: Tally = {}
        self._ranks = Succession()
        self._latest: Mapping[int, ActorStats] = {}
        self._window = LoadWindow(SHARE_WINDOW_S)

    def take(self, now_s: float, stats: Mapping[int, ActorStats]) -> None:
        """Take in what the serving actors say, by rank; one that is silent is as it last was."""
        for rank, one in stats.items():
            identity = one.identity
            self._ranks.take(rank, f"{identity.node}/{identity.pid}", actor_counts(one))
        self._latest = stats
        tokens = expert_tokens(self._ranks.counts())
        if tokens:
            self._window.add(now_s, {self._pipeline: tokens})

    def view(
        self, now_s: float, heard: Tally, report: PipelineReport, *, whole: bool = True
    ) -> PipelineView:
        """What to answer one who has `heard` so much. Not `whole`: of this pipeline alone.

        All of it grows with every pipeline and ingress there ever was: too much for each second.
        """
        mine, gauges = self.own(report)
        own = {f"pipeline/{self._pipeline}": mine}
        self._heard = joined([self._heard, heard, own])
        tally = self._heard if whole else own
        return PipelineView(report, tally, gauges, self._window.load(now_s))

    def own(self, report: PipelineReport) -> tuple[Counts, Gauges]:
        """This pipeline's alone."""
        gauges = {series: value for one in self._latest.values() for series, value in _gauges(one)}
        counts = self._ranks.counts() | _report_counts(report)
        return counts, gauges | self._report_gauges(report)

    def own_shares(self, now_s: float) -> Gauges:
        """Of this pipeline's rows in the last minute."""
        return shares(self._window.load(now_s))

    def _report_gauges(self, report: PipelineReport) -> dict[Series, float]:
        name = self._pipeline
        gauges: dict[Series, float] = {
            (table.SERVING.name, name): float(report.serving),
            (table.RANKS_REPLACING.name, name): len(report.filling),
            (table.SPARE_ACTORS.name, name): report.num_spares,
            (table.REDUNDANT_EXPERTS.name, name): self._redundant_experts,
        }
        for layer, row in enumerate(self._holders()):
            for expert, count in enumerate(row):
                gauges[table.EXPERT_HOLDERS.name, name, str(layer), str(expert)] = count
        return gauges

    def _holders(self) -> list[list[int]]:
        """Serving ranks that hold [layer][expert]."""
        attention = [one for one in self._latest.values() if one.expert_tokens]
        if not attention:
            return []
        newest = max(attention, key=lambda one: one.placement_version)
        if not newest.placement:
            return [[len(attention)] * len(row) for row in newest.expert_tokens]
        return [
            [sum(rank in self._latest for rank in ranks) for ranks in row]
            for row in newest.placement
        ]


def actor_counts(one: ActorStats) -> dict[Series, Value]:
    """What one attention or expert actor has counted since it began."""
    identity = one.identity
    where = (identity.pipeline, str(identity.rank))
    counts: dict[Series, Value] = {}

    def count(metric: Metric, value: float, *labels: str) -> None:
        counts[metric.name, *labels] = (value,)

    for phase in _PHASES:
        count(table.STEP_SECONDS, getattr(one, f"{phase}_s"), *where, identity.role, phase)
    count(table.SENT_BYTES, one.sent_bytes, *where, identity.role)
    if identity.role == "expert":
        count(table.EXPERT_ACTOR_ROWS, one.num_rows, *where)
        return counts
    for metric, name in _ATTENTION_COUNTERS:
        count(metric, getattr(one, name), *where)
    if one.queue_time:
        counts[table.QUEUE_TIME.name,] = one.queue_time
    pairs, first, any_ = one.expert_repeats
    if one.expert_tokens:
        count(table.EXPERT_PAIRS, pairs)
    for choice, repeats in (("first", first), ("any", any_)):
        for layer, number in enumerate(repeats):
            count(table.EXPERT_REPEATS, number, str(layer), choice)
    for layer, row in enumerate(one.expert_tokens):
        for expert, tokens in enumerate(row):
            count(table.EXPERT_TOKENS, tokens, str(layer), str(expert))
    return counts


def expert_tokens(counts: Counts) -> list[list[int]]:
    """Choices per [layer][expert] in a sum of counts; empty where there are none."""
    cells = {
        (int(series[1]), int(series[2])): int(value[0])
        for series, value in counts.items()
        if series[0] == table.EXPERT_TOKENS.name
    }
    if not cells:
        return []
    layers, experts = (1 + max(axis) for axis in zip(*cells, strict=True))
    return [[cells.get((i, e), 0) for e in range(experts)] for i in range(layers)]


def repeat_rates(counts: Counts) -> dict[str, list[float]]:
    """By choice ("first", "any"): the share of pairs of tokens that repeat it, by layer.

    Empty before the first pair.
    """
    (pairs,) = counts.get((table.EXPERT_PAIRS.name,), (0.0,))
    rates: dict[str, dict[int, float]] = {"first": {}, "any": {}}
    for series, value in counts.items():
        if series[0] == table.EXPERT_REPEATS.name and pairs:
            rates[series[2]][int(series[1])] = value[0] / pairs
    return {choice: [rate for _, rate in sorted(row.items())] for choice, row in rates.items()}


def shares(recent_tokens: Sequence[Sequence[float]]) -> dict[Series, float]:
    """Each expert's share of its layer, as gauges; 0 where the layer had no rows."""
    return {
        (table.EXPERT_SHARE.name, str(layer), str(expert)): tokens / max(sum(row), 1.0)
        for layer, row in enumerate(recent_tokens)
        for expert, tokens in enumerate(row)
    }


def _gauges(one: ActorStats) -> list[tuple[Series, float]]:
    if one.identity.role != "attention":
        return []
    where = (one.identity.pipeline, str(one.identity.rank))
    return [((metric.name, *where), getattr(one, name)) for metric, name in _ATTENTION_GAUGES]


def _report_counts(report: PipelineReport) -> dict[Series, Value]:
    name, losses = report.router.pipeline, report.recovery_counts
    counts: dict[Series, Value] = {(table.RECOVERY_SECONDS.name, name): losses.seconds}
    # What has not happened yet is 0 and not unknown: an increase begins somewhere.
    for role, cause in product(_ROLES, _CAUSES):
        counts[table.RECOVERIES.name, name, role, cause] = (0,)
    for (role, cause), count in losses.lost.items():
        counts[table.RECOVERIES.name, name, role, cause] = (count,)
    for outcome, count in report.changes.items():
        counts[table.PLACEMENT_CHANGES.name, name, outcome] = (count,)
    for outcome, count in (dict.fromkeys(_OUTCOMES, 0) | report.balance.counts).items():
        counts[table.BALANCE_PROPOSALS.name, name, outcome] = (count,)
    return counts
