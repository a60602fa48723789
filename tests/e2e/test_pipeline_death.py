"""Actors die or hang while 32 streams run: every stream ends with the tokens it would have had."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from configs.schema import WindroseConfig
from tests.e2e.deployments import Cluster
from tests.e2e.reference import Reference
from tests.e2e.test_serve_command import Stream

NUM_STREAMS = 32
MAX_TOKENS = 300
Victims = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def url(cluster: Cluster, checkpoint: Path) -> Iterator[str]:
    """Two attention and two expert actors; a hang is noticed within 3 s."""
    config = WindroseConfig(
        model=str(checkpoint),
        attention_actors=2,
        expert_actors=2,
        cpus_per_actor=0.1,
        threads_per_actor=1,
        max_model_len=512,
        peer_timeout_s=3.0,
    )
    with cluster.deployed(config, "deaths") as url:
        yield url


@pytest.fixture(scope="module")
def undisturbed(url: str, reference: Reference) -> dict[int, tuple[int, ...]]:
    """What every stream must answer: greedy ones as transformers, seeded ones as when calm."""
    expected = {
        i: reference.greedy(tuple(prompt_of(i)), MAX_TOKENS).token_ids
        for i in range(0, NUM_STREAMS, 2)
    }
    for stream in finished(start(url, range(1, NUM_STREAMS, 2))):
        expected[stream.number] = tuple(stream.token_ids)
    return expected


class NumberedStream(Stream):
    """Stream number i: greedy where i is even, drawn with seed i where it is odd."""

    def __init__(self, url: str, number: int) -> None:
        extra = {"seed": number, "temperature": 1.0} if number % 2 else {}
        super().__init__(url, prompt_of(number), MAX_TOKENS, **extra)
        self.number = number


def prompt_of(number: int) -> list[int]:
    return [1] + [40 + number] * (1 + number % 5)


def start(url: str, numbers: range) -> list[NumberedStream]:
    streams = [NumberedStream(url, number) for number in numbers]
    for stream in streams:
        stream.start()
    return streams


def finished(streams: list[NumberedStream]) -> list[NumberedStream]:
    for stream in streams:
        stream.join(180.0)
        assert stream.done, f"stream {stream.number} did not end"
    return streams


def one(role: str) -> Victims:
    return lambda actors: [next(actor for actor in actors if actor["role"] == role)]


def every(role: str) -> Victims:
    return lambda actors: [actor for actor in actors if actor["role"] == role]


@pytest.mark.parametrize(
    ("victims", "how"),
    [
        pytest.param(one("expert"), signal.SIGKILL, id="expert-killed"),
        pytest.param(one("attention"), signal.SIGKILL, id="attention-killed"),
        pytest.param(every("expert"), signal.SIGKILL, id="all-experts-killed"),
        pytest.param(lambda actors: actors[1:3], signal.SIGKILL, id="one-of-each-killed"),
        pytest.param(one("expert"), signal.SIGSTOP, id="expert-hangs"),
    ],
)
def test_streams_go_on(
    url: str, undisturbed: dict[int, tuple[int, ...]], victims: Victims, how: signal.Signals
) -> None:
    streams = start(url, range(NUM_STREAMS))
    for stream in streams:
        assert stream.started.wait(60.0)
    before = httpx.get(f"{url}/v1/experts").json()
    struck = {actor["pid"] for actor in victims(before["actors"])}
    assert not any(stream.done for stream in streams), "they ended before it happened"
    for pid in struck:
        os.kill(pid, how)
    for stream in finished(streams):
        assert tuple(stream.token_ids) == undisturbed[stream.number], f"stream {stream.number}"
    after = httpx.get(f"{url}/v1/experts").json()
    survivors = {actor["pid"] for actor in before["actors"]} - struck
    pids = {actor["pid"] for actor in after["actors"]}
    assert survivors <= pids, "an actor that lived was replaced"
    assert not struck & pids
    assert len(pids) == 4
    assert len(after["recoveries"]) > len(before["recoveries"])
    assert httpx.get(f"{url}/health").status_code == 200


def test_streams_go_on_when_the_router_dies(
    url: str, undisturbed: dict[int, tuple[int, ...]]
) -> None:
    streams = start(url, range(NUM_STREAMS))
    for stream in streams:
        assert stream.started.wait(60.0)
    routers = [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if any("ServeReplica:deaths:Router" in part for part in process.info["cmdline"] or [])
    ]
    assert len(routers) == 1
    before = {actor["pid"] for actor in httpx.get(f"{url}/v1/experts").json()["actors"]}
    assert not any(stream.done for stream in streams), "they ended before it happened"
    routers[0].kill()
    for stream in finished(streams):
        assert tuple(stream.token_ids) == undisturbed[stream.number], f"stream {stream.number}"
    after = {actor["pid"] for actor in httpx.get(f"{url}/v1/experts").json()["actors"]}
    assert not before & after, "the actors of a dead router must die with it"
