"""How many pipelines the load asks for: a pure function, and what makes it a policy of Serve's.

Serve carries this module to its controller by value, and the controller may not have this
project: so it imports nothing of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.serve.config import AutoscalingContext

FULL_KV = 0.9  # share of KV blocks in use from which on sequences are preempted or wait
CALM_TTFT = 0.5  # of the target: only below it may pipelines go
MAX_GROWTH = 2.0  # at once, for slow first tokens: how many it takes nobody knows beforehand

STATS = ("running", "waiting", "kv_cache_usage", "ttft_s")  # of Router.record_autoscaling_stats

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Load:
    """One pipeline's."""

    running: float
    waiting: float
    kv_cache_usage: float  # 0 to 1
    ttft_s: float


@dataclass(frozen=True, slots=True)
class Desired:
    """How many pipelines, and why, in one phrase."""

    replicas: int
    reason: str


def desired_replicas(
    loads: Sequence[Load],
    num_silent: int,
    target_ongoing_requests: float,
    target_ttft_s: float | None,
) -> Desired:
    """How many pipelines the ones that run should be; limits and delays aside.

    `loads` are theirs, but for `num_silent` that have not said yet how they are: until they have,
    none is too many. The largest wish is granted; nothing shrinks before first tokens are fast
    and no cache is full.
    """
    now = len(loads) + num_silent
    requests = sum(one.running + one.waiting for one in loads)
    by_queue = math.ceil(requests / target_ongoing_requests)
    wishes = [Desired(by_queue, f"{requests:.0f} requests, {target_ongoing_requests:g} for each")]
    if num_silent:
        wishes.append(Desired(now, f"{num_silent} have not reported yet"))
    if loads:
        fullest = sum(one.kv_cache_usage for one in loads) / len(loads)
        if fullest >= FULL_KV:
            crowded = any(one.waiting for one in loads)
            wishes.append(Desired(now + crowded, f"KV caches {fullest:.0%} full"))
        else:  # no fewer than their caches hold it all: else another would come again
            caches = math.ceil(sum(one.kv_cache_usage for one in loads) / FULL_KV)
            wishes.append(Desired(caches, f"KV caches {fullest:.0%} full on {now}"))
        ttft_s = max(one.ttft_s for one in loads)
        if target_ttft_s is not None and ttft_s > CALM_TTFT * target_ttft_s:
            growth = min(MAX_GROWTH, ttft_s / target_ttft_s)
            why = f"first tokens after {ttft_s:.2f} s, wanted {target_ttft_s:g}"
            wishes.append(Desired(max(now, math.ceil(now * growth)), why))
    return max(wishes, key=lambda wish: wish.replicas)


class ScalingPolicy:
    """The function above, as Serve calls it in every turn of its control loop.

    Serve itself starts the first pipeline for a request that waits where there is none, keeps to
    the limits, and acts on what has been wanted throughout a delay.
    """

    def __init__(self, target_ongoing_requests: float, target_ttft_s: float | None) -> None:
        self._target_ongoing_requests = target_ongoing_requests
        self._target_ttft_s = target_ttft_s
        self._said = ""

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of pipelines wanted, and nothing to remember."""
        if not context.running_replicas:
            return context.target_num_replicas, {}
        loads = _loads(context.raw_metrics or {}, context.running_replicas)
        desired = desired_replicas(
            loads,
            len(context.running_replicas) - len(loads),
            self._target_ongoing_requests,
            self._target_ttft_s,
        )
        self._say(desired, context.target_num_replicas)
        return desired.replicas, {}

    def _say(self, desired: Desired, target: int) -> None:
        if desired.replicas == target:
            self._said = ""
            return
        said = f"{desired.replicas} of {target}"
        if said != self._said:
            self._said = said
            logger.info(
                "pipelines: %d wanted, %d now: %s", desired.replicas, target, desired.reason
            )


def _loads(metrics: Mapping[str, Mapping[Any, Any]], replicas: Sequence[Any]) -> list[Load]:
    """What each replica that has reported said last."""
    latest = [
        [series[-1].value for name in STATS if (series := metrics.get(name, {}).get(replica))]
        for replica in replicas
    ]
    return [Load(*values) for values in latest if len(values) == len(STATS)]
