"""How many pipelines a load asks for, alone and as Serve asks it."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import (
    DeploymentID,
    ReplicaID,
    ReplicaMetricReport,
    TimeStampedValue,
)
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.deployment_info import DeploymentInfo

from cluster.app import _number_of_pipelines
from cluster.autoscaling import FULL_KV, Load, desired_replicas
from configs.schema import WindroseConfig

ROUTERS = DeploymentID("Router", "app")
CALM = Load(0, 0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("loads", "num_silent", "want", "reason"),
    [
        ([CALM], 0, 0, "0 requests"),
        ([Load(3, 1, 0.2, 0.1)], 0, 1, "4 requests, 4 for each"),
        ([Load(3, 2, 0.2, 0.1)], 0, 2, "5 requests"),
        ([Load(4, 9, 0.2, 0.1), CALM], 0, 4, "13 requests"),
        ([Load(1, 0, 0.2, 0.1), CALM, CALM], 0, 1, "1 requests"),
        ([CALM, CALM], 1, 3, "1 have not reported"),
        ([], 1, 1, "1 have not reported"),
        ([Load(2, 1, 0.95, 0.1)], 0, 2, "KV caches 95% full"),  # something waits for blocks
        ([Load(2, 0, 0.95, 0.1), Load(0, 0, 0.9, 0)], 0, 2, "KV caches 92% full"),  # may not go
        ([Load(2, 1, 0.95, 0.1), CALM], 0, 2, "KV caches 48% full on 2"),  # one would be full
        ([Load(15, 0, 0.75, 0.1)] * 2, 0, 8, "30 requests, 4 for each"),
        ([Load(1, 0, 0.75, 0.1)] * 2, 0, 2, "KV caches 75% full on 2"),
        ([Load(1, 0, 0.3, 0.1)] * 3, 0, 1, "3 requests"),  # one holds it all
        ([Load(1, 0, 0.1, 1.01)], 0, 2, "first tokens after 1.01 s, wanted 1"),
        ([Load(1, 0, 0.1, 9.0), CALM, CALM], 0, 6, "first tokens after 9.00 s"),  # no more at once
        ([Load(1, 0, 0.1, 0.6), CALM, CALM], 0, 3, "first tokens after 0.60 s"),  # none may go
        ([Load(1, 0, 0.1, 0.5), CALM, CALM], 0, 1, "1 requests"),
    ],
)
def test_the_largest_wish_is_granted_with_its_reason(
    loads: list[Load], num_silent: int, want: int, reason: str
) -> None:
    desired = desired_replicas(loads, num_silent, 4, 1.0)
    assert desired.replicas == want
    assert reason in desired.reason


LOADS = st.lists(
    st.builds(Load, st.integers(0, 99), st.integers(0, 99), st.floats(0, 0.89), st.floats(0, 1000)),
    max_size=8,
)


@given(LOADS, st.integers(0, 3), st.floats(0.5, 50))
def test_without_a_target_for_first_tokens_the_queue_and_the_caches_decide(
    loads: list[Load], num_silent: int, target: float
) -> None:
    total = sum(one.running + one.waiting for one in loads)
    least = len(loads) + num_silent if num_silent else 0
    desired = desired_replicas(loads, num_silent, target, None)
    caches = math.ceil(sum(one.kv_cache_usage for one in loads) / FULL_KV)  # that hold it all
    assert caches <= len(loads)
    assert desired.replicas == max(least, math.ceil(total / target), caches)


@given(LOADS, st.integers(0, 3), st.floats(0.5, 50), st.floats(0.1, 9))
def test_more_load_never_asks_for_fewer(
    loads: list[Load], num_silent: int, target: float, ttft_s: float
) -> None:
    before = desired_replicas(loads, num_silent, target, ttft_s).replicas
    for i, one in enumerate(loads):
        more = Load(one.running + 5, one.waiting + 5, 1.0, one.ttft_s * 2)
        busier = [*loads[:i], more, *loads[i + 1 :]]
        assert desired_replicas(busier, num_silent, target, ttft_s).replicas >= before


class Scaled:
    """Serve's own side of it, for a deployment with our options."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr("time.time", lambda: self.now_s)
        config = WindroseConfig(model="m", **settings)
        options = DeploymentConfig(**_number_of_pipelines(config))
        info = DeploymentInfo(options, None, 0, "job", None)  # type: ignore[arg-type]
        self.target = 0
        self._serve = DeploymentAutoscalingState(ROUTERS)
        self.target = self._serve.register(info, 0)

    def step(self, *loads: tuple[float, float], step_s: float = 1.0) -> int:
        """(requests, TTFT) of each pipeline that runs, one second later; returns the target."""
        self.now_s += step_s
        replicas = [ReplicaID(f"r{i}", ROUTERS) for i in range(len(loads))]
        self._serve.update_running_replica_ids(replicas)
        for replica, (running, ttft_s) in zip(replicas, loads, strict=True):
            stats = {"running": running, "waiting": 0, "kv_cache_usage": 0, "ttft_s": ttft_s}
            series = {key: [TimeStampedValue(self.now_s, v)] for key, v in stats.items()}
            report = ReplicaMetricReport(replica_id=replica, metrics=series, timestamp=self.now_s)
            self._serve.record_request_metrics_for_replica(report)
        self.target = self._serve.get_decision_num_replicas(self.target)
        return self.target

    def queue(self, count: int) -> None:
        """So many calls wait at an ingress for a pipeline."""
        self._serve._handle_store.accept(_queued(count, self.now_s))


def _queued(count: int, now_s: float) -> Any:
    from ray.serve._private.common import HandleMetricReport

    fields: dict[str, Any] = {
        "deployment_id": ROUTERS,
        "handle_id": "h",
        "actor_id": "a",
        "handle_source": "REPLICA",
        "queued_requests": [TimeStampedValue(now_s, count)],
        "aggregated_queued_requests": float(count),
        "aggregated_metrics": {},
        "metrics": {},
        "timestamp": now_s,
    }
    known = HandleMetricReport.__dataclass_fields__
    return HandleMetricReport(**{key: fields[key] for key in known if key in fields})


def test_up_after_one_delay_and_down_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = Scaled(
        monkeypatch,
        max_replicas=3,
        target_ongoing_requests=4,
        upscale_delay_s=5,
        downscale_delay_s=10,
    )
    assert scaled.target == 1
    assert [scaled.step((9, 0)) for _ in range(6)] == [1, 1, 1, 1, 1, 3]
    assert [scaled.step((20, 0), (0, 0), (0, 0)) for _ in range(9)] == [3] * 9  # no more than 3
    assert [scaled.step((1, 0), (0, 0), (0, 0)) for _ in range(11)] == [3] * 10 + [1]
    assert [scaled.step((0, 0)) for _ in range(30)] == [1] * 30


def test_slow_first_tokens_add_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = Scaled(monkeypatch, max_replicas=8, target_ttft_s=1, upscale_delay_s=3)
    assert [scaled.step((2, 1.5)) for _ in range(4)] == [1, 1, 1, 2]
    # the second one still starts: one that runs does not ask for more than it did
    assert [scaled.step((2, 1.5)) for _ in range(9)] == [2] * 9


def test_to_zero_and_back_for_a_request_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = Scaled(monkeypatch, max_replicas=2, min_replicas=0, downscale_delay_s=5)
    assert scaled.target == 0
    assert scaled.step() == 0
    scaled.queue(1)
    assert scaled.step() == 1, "at once"
    assert scaled.step() == 1
    scaled.queue(0)
    assert [scaled.step((1, 0)) for _ in range(20)] == [1] * 20
    assert [scaled.step((0, 0)) for _ in range(6)] == [1] * 5 + [0]
    assert scaled.step() == 0


def test_the_policy_needs_nothing_of_the_project_where_serve_decides() -> None:
    config = WindroseConfig(model="m", max_replicas=3, target_ongoing_requests=4)
    scaling = _number_of_pipelines(config)["autoscaling_config"]
    packed = scaling.policy.get_serialized_policy_def()
    code = (
        "import pickle, sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        assert name.split('.')[0] not in ('cluster', 'actors', 'model', 'configs'), name\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"policy = pickle.loads({packed!r})(4, None)\n"
        "context = type('C', (), {'running_replicas': ['r'], 'target_num_replicas': 1})\n"
        "value = type('V', (), {'value': 9.0})\n"
        "names = ('running', 'waiting', 'kv_cache_usage', 'ttft_s')\n"
        "context.raw_metrics = {name: {'r': [value]} for name in names}\n"
        "print(policy(context)[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == math.ceil(18 / 4)
    assert pickle.loads(packed) is not None
