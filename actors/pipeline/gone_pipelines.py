"""Counts of pipelines that are gone, as one: else each router's death would leave series behind."""

from __future__ import annotations

from collections.abc import Collection

from actors.metrics.metric_table import BY_NAME
from actors.metrics.tally import Counts, Series, Value, added

_PIPELINE, _RANK = "pipeline", "rank"


def folded(counts: Counts, living: Collection[str]) -> dict[Series, Value]:
    """The same sums, with those of pipelines that are not `living` under "N gone", of all ranks.

    N is how many these are, so that each time one more is folded in the series is a new one: to
    Prometheus one that jumped would be a burst of whatever it counts.
    """
    gone = {name for series in counts if (name := _pipeline(series)) and name not in living}
    label = f"{len(gone)} gone"
    kept = {series: value for series, value in counts.items() if _pipeline(series) not in gone}
    moved = [
        {_relabelled(series, label): value}
        for series, value in counts.items()
        if _pipeline(series) in gone
    ]
    return added([kept, *moved])


def _pipeline(series: Series) -> str | None:
    labels = BY_NAME[series[0]].labels
    return series[1 + labels.index(_PIPELINE)] if _PIPELINE in labels else None


def _relabelled(series: Series, pipeline: str) -> Series:
    new = {_PIPELINE: pipeline, _RANK: "all"}
    labels = zip(BY_NAME[series[0]].labels, series[1:], strict=True)
    return (series[0], *(new.get(name, value) for name, value in labels))
