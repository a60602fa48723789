"""What happens when a dead actor cannot be replaced: nothing hangs, and the rest serves on."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from configs.schema import WindroseConfig
from tests.e2e.deployments import Cluster, wait_healthy
from tests.e2e.reference import Reference
from tests.e2e.streams import NumberedStream, assert_undisturbed, experts_of, ranks_of, start

WAIT_S = 3.0
MAX_TOKENS = 200
GREEDY = {"prompt": [1, 44, 45], "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def own_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that this module may damage."""
    return Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("limits") / "model"))


@pytest.fixture(scope="module")
def url(cluster: Cluster, own_checkpoint: Path) -> Iterator[str]:
    """One attention actor, two expert actors; a request waits 3 s for a pipeline that serves."""
    config = WindroseConfig(
        model=str(own_checkpoint),
        attention_actors=1,
        expert_actors=2,
        cpus_per_actor=0.1,
        threads_per_actor=1,
        max_model_len=256,
        pipeline_wait_s=WAIT_S,
        balance="off",
    )
    with cluster.deployed(config, "limits") as url:
        yield url


@contextmanager
def cut_short(checkpoint: Path) -> Iterator[None]:
    """The shard ends before its last tensors do, as after a failed copy."""
    (shard,) = checkpoint.glob("*.safetensors")
    whole = shard.read_bytes()
    # Not in place: the actors that live may have it open.
    shard.unlink()
    shard.write_bytes(whole[: len(whole) // 2])
    try:
        yield
    finally:
        shard.unlink()
        shard.write_bytes(whole)


def kill_rank(url: str, rank: int) -> None:
    (pid,) = [one["pid"] for one in ranks_of(url, [0, 1, 2]) if one["rank"] == rank]
    os.kill(pid, signal.SIGKILL)


def fault(url: str) -> str:
    """Why a rank is not filled, once a try has failed."""
    deadline_s = time.monotonic() + 60.0
    while time.monotonic() < deadline_s:
        for waiting in experts_of(url)["pipelines"][0]["replacing"]:
            if waiting["fault"]:
                return str(waiting["fault"])
        time.sleep(0.05)  # nothing to wait on from outside
    raise TimeoutError("no fault was told")


def test_without_a_holder_requests_get_503_until_the_shard_is_whole_again(
    url: str, own_checkpoint: Path
) -> None:
    calm = httpx.post(f"{url}/v1/completions", json=GREEDY, timeout=30.0).json()
    with cut_short(own_checkpoint):
        running = NumberedStream(url, 2, MAX_TOKENS)
        running.start()
        assert running.started.wait(30.0)
        kill_rank(url, 2)
        assert "safetensors" in fault(url)
        began_s = time.monotonic()
        answer = httpx.post(f"{url}/v1/completions", json=GREEDY, timeout=30.0)
        waited_s = time.monotonic() - began_s
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert waited_s < WAIT_S + 2.0
        assert httpx.get(f"{url}/health").status_code == 503
        pipeline = experts_of(url)["pipelines"][0]
        assert not pipeline["serving"]
        assert "has no holder left" in pipeline["obstacle"]
        running.join(WAIT_S + 5.0)
        assert not running.is_alive(), "it waits for ever"
        assert not running.done and running.error is not None
        assert running.error["code"] == "service_unavailable", running.error
    wait_healthy(url)
    again = httpx.post(f"{url}/v1/completions", json=GREEDY, timeout=30.0).json()
    assert again["choices"] == calm["choices"]
    ranks_of(url, [0, 1, 2])


def test_with_a_second_holder_everything_goes_on_and_changes_wait(
    url: str, own_checkpoint: Path, reference: Reference
) -> None:
    ranks_of(url, [0, 1, 2])
    for expert in range(8):
        answer = httpx.post(f"{url}/v1/experts/replicate", json={"expert": expert}, timeout=60.0)
        assert answer.status_code == 200, answer.text
    with cut_short(own_checkpoint):
        streams = [one for one in start(url, 8, MAX_TOKENS) if one.number % 2 == 0]
        kill_rank(url, 1)
        assert "safetensors" in fault(url)
        known = {
            one.number: reference.greedy(tuple(one.prompt), MAX_TOKENS).token_ids for one in streams
        }
        assert_undisturbed(streams, known)
        assert httpx.get(f"{url}/health").status_code == 200
        answer = httpx.post(f"{url}/v1/experts/drop", json={"expert": 0}, timeout=30.0)
        assert answer.status_code == 409
        assert "being replaced" in answer.json()["error"]["message"]
    ranks_of(url, [0, 1, 2])
    answer = httpx.post(f"{url}/v1/experts/drop", json={"expert": 0}, timeout=30.0)
    assert answer.status_code == 200
