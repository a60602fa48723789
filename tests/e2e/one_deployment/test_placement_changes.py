"""The placement changes while streams run: none fails, none says anything else than when calm."""

from __future__ import annotations

import os
import signal
from typing import Any

import httpx
import pytest

from tests.e2e.streams import (
    Calm,
    Known,
    assert_under_way,
    assert_undisturbed,
    experts_of,
    ranks_of,
    start,
)

NUM_STREAMS = 16
MAX_TOKENS = 300
LAYERS = 3
NUM_EXPERTS = 8


@pytest.fixture(scope="module")
def known(url: str, calm: Calm) -> Known:
    return calm.known(url, NUM_STREAMS, MAX_TOKENS)


def change(url: str, name: str, **body: Any) -> dict[str, Any]:
    """Make a change; returns what the one pipeline says of it."""
    answer = httpx.post(f"{url}/v1/experts/{name}", json=body, timeout=60.0)
    assert answer.status_code == 200, answer.text
    (report,) = answer.json()["pipelines"]
    assert report["placement_version"] == experts_of(url)["placement_version"]
    return dict(report)


def refused(url: str, name: str, **body: Any) -> tuple[int, str | None]:
    """Ask for what cannot be; returns status and the parameter at fault."""
    version = experts_of(url)["placement_version"]
    answer = httpx.post(f"{url}/v1/experts/{name}", json=body, timeout=60.0)
    assert experts_of(url)["placement_version"] == version
    return answer.status_code, answer.json()["error"]["param"]


def holders(url: str, expert: int) -> list[list[int]]:
    """Of one expert, by layer."""
    return [sorted(row[expert]) for row in experts_of(url)["placement"]]


def test_every_change_while_streams_run(url: str, known: Known) -> None:
    pids = {one["rank"]: one["pid"] for one in ranks_of(url, [0, 1, 2, 3])}
    streams = start(url, NUM_STREAMS, MAX_TOKENS)

    report = change(url, "replicate", expert=0)
    assert report["applied"]
    assert report["added"] == [{"layer": i, "expert": 0, "rank": 3} for i in range(LAYERS)]
    assert holders(url, 0) == [[2, 3]] * LAYERS
    change(url, "replicate", expert=5, layer=1, to=2)
    assert holders(url, 5) == [[3], [2, 3], [3]]
    change(url, "move", expert=6, to=2)
    assert holders(url, 6) == [[2]] * LAYERS
    change(url, "drop", expert=0, rank=2)
    assert holders(url, 0) == [[3]] * LAYERS
    assert_under_way(streams)
    assert_undisturbed(streams, known)

    streams = start(url, NUM_STREAMS, MAX_TOKENS)
    assert change(url, "scale", expert_actors=4)["applied"]
    ranks = ranks_of(url, [0, 1, 2, 3, 4, 5])
    assert {one["rank"]: one["pid"] for one in ranks if one["rank"] < 4} == pids
    layers = experts_of(url)["placement"]
    assert {rank for row in layers for ranks in row for rank in ranks} == {2, 3, 4, 5}
    assert_undisturbed(streams, known)

    streams = start(url, NUM_STREAMS, MAX_TOKENS)
    change(url, "scale", expert_actors=1)
    assert [one["rank"] for one in ranks_of(url, [0, 1, 2])] == [0, 1, 2]
    assert holders(url, 7) == [[2]] * LAYERS
    change(url, "scale", expert_actors=2)
    before = experts_of(url)
    dry = change(url, "rebalance", dry_run=True)
    assert not dry["applied"] and dry["reason"]
    assert experts_of(url)["placement"] == before["placement"]
    change(url, "rebalance")
    assert_undisturbed(streams, known)
    ranks_of(url, [0, 1, 2, 3])
    assert all(row for layer in experts_of(url)["placement"] for row in layer)


@pytest.mark.parametrize(
    ("name", "body", "param"),
    [
        ("replicate", {"expert": NUM_EXPERTS}, "expert"),
        ("replicate", {"expert": 0, "layer": LAYERS}, "layer"),
        ("replicate", {"expert": 0, "to": 1}, "to"),
        ("move", {"expert": 0, "to": 99}, "to"),
        ("drop", {"expert": 0, "rank": 0}, "rank"),
        ("scale", {"expert_actors": NUM_EXPERTS + 1}, "expert_actors"),
        ("scale", {"expert_actors": 0}, "expert_actors"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    url: str, name: str, body: dict[str, int], param: str
) -> None:
    assert refused(url, name, **body) == (400, param)


def test_a_last_holder_stays_and_a_second_one_serves_alone(url: str, known: Known) -> None:
    ranks_of(url, [0, 1, 2, 3])
    for expert in range(NUM_EXPERTS):
        for layer in range(LAYERS):
            for rank in (2, 3):
                if rank not in holders(url, expert)[layer]:
                    change(url, "replicate", expert=expert, layer=layer, to=rank)
    streams = start(url, NUM_STREAMS, MAX_TOKENS)
    victim = next(one for one in ranks_of(url, [0, 1, 2, 3]) if one["rank"] == 3)
    num_recoveries = len(experts_of(url)["recoveries"])
    os.kill(victim["pid"], signal.SIGKILL)
    assert_undisturbed(streams, known)
    ranks_of(url, [0, 1, 2, 3])
    recovery = experts_of(url)["recoveries"][num_recoveries]
    assert recovery["dead"] == [["expert", 3]]
    assert recovery["start_s"] < 0.1, "the other holder did not have to wait for a new process"
    change(url, "drop", expert=1, rank=3)
    assert holders(url, 1) == [[2]] * LAYERS
    assert refused(url, "drop", expert=1, rank=2)[0] == 400
