"""Actors die or hang while 32 streams run: every stream ends with the tokens it would have had."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from actors.naming import namespace_of, pipeline_of
from configs.schema import WindroseConfig
from tests.actors.otlp_receiver import Receiver
from tests.e2e.deployments import Cluster
from tests.e2e.reference import Reference
from tests.e2e.streams import (
    Calm,
    Known,
    Stream,
    assert_under_way,
    assert_undisturbed,
    experts_of,
    prompt_of,
    ranks_of,
    start,
)

NUM_STREAMS = 32
MAX_TOKENS = 200
RANKS = [0, 1, 2, 3]
Victims = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def known(url: str, calm: Calm) -> Known:
    return calm.known(url, NUM_STREAMS, MAX_TOKENS)


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
        pytest.param(every("attention"), signal.SIGKILL, id="all-attention-killed"),
        pytest.param(lambda actors: actors[1:3], signal.SIGKILL, id="one-of-each-killed"),
        pytest.param(one("expert"), signal.SIGSTOP, id="expert-hangs"),
        pytest.param(one("attention"), signal.SIGSTOP, id="attention-hangs"),
    ],
)
def test_streams_go_on(url: str, known: Known, victims: Victims, how: signal.Signals) -> None:
    before = ranks_of(url, RANKS)
    num_recoveries = len(experts_of(url)["recoveries"])
    streams = start(url, NUM_STREAMS, MAX_TOKENS)
    struck = {actor["pid"] for actor in victims(before)}
    assert_under_way(streams)
    for pid in struck:
        os.kill(pid, how)
    assert_undisturbed(streams, known)
    after = {actor["pid"] for actor in ranks_of(url, RANKS)}
    survivors = {actor["pid"] for actor in before} - struck
    assert survivors <= after, "an actor that lived was replaced"
    assert not struck & after
    assert len(experts_of(url)["recoveries"]) > num_recoveries
    assert httpx.get(f"{url}/health").status_code == 200


def test_a_trace_tells_of_the_recovery(url: str, receiver: Receiver) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    victims = {"expert": ranks_of(url, RANKS)[2], "attention": ranks_of(url, RANKS)[0]}
    for role, victim in victims.items():
        # Two, one on each attention actor: of an attention actor's death one of them knows.
        streams = [Stream(url, prompt_of(i), MAX_TOKENS) for i in (1, 2)]
        for i, stream in enumerate(streams):
            stream.headers = {
                "X-Request-Id": f"{role}-{i}",
                "traceparent": f"00-{trace}-{parent}-01",
            }
            stream.start()
        assert all(stream.started.wait(60.0) for stream in streams)
        struck_s = time.time()
        os.kill(victim["pid"], signal.SIGKILL)
        for stream in streams:
            stream.join(120.0)
            assert stream.done
        recoveries = 0
        for i in range(2):
            root, *below = receiver.of(f"{role}-{i}")
            assert (root.trace, root.parent) == (trace, parent)
            assert {span.trace for span in below} == {trace}
            spans = {span.name: span for span in below}
            queue, prefill, decode = spans["queue"], spans["prefill"], spans["decode"]
            assert root.from_s == queue.from_s <= queue.to_s == prefill.from_s <= prefill.to_s
            assert prefill.to_s == decode.from_s < struck_s < decode.to_s <= root.to_s
            if recovery := spans.get("recovery"):
                recoveries += 1
                assert struck_s - 0.01 <= recovery.from_s < recovery.to_s <= decode.to_s
        assert recoveries == 2 or (role == "attention" and recoveries == 1)
        ranks_of(url, RANKS)


def test_a_second_death_during_the_recovery_of_the_first(url: str, known: Known) -> None:
    before = ranks_of(url, RANKS)
    streams = start(url, NUM_STREAMS, MAX_TOKENS)
    os.kill(before[2]["pid"], signal.SIGKILL)
    # The recovery has begun once the router says so; then another falls, and its replacement.
    while experts_of(url)["pipelines"][0]["replacing"] == []:
        pass
    os.kill(before[1]["pid"], signal.SIGKILL)
    os.kill(before[3]["pid"], signal.SIGKILL)
    assert_undisturbed(streams, known)
    after = {actor["pid"] for actor in ranks_of(url, RANKS)}
    assert before[0]["pid"] in after
    assert not {before[i]["pid"] for i in (1, 2, 3)} & after


def test_a_death_while_prompts_are_read(url: str, reference: Reference) -> None:
    before = ranks_of(url, RANKS)
    prompts = [[1] + [(7 * i + j) % 400 + 40 for j in range(150 + i)] for i in range(NUM_STREAMS)]
    streams = [Stream(url, prompt, 8) for prompt in prompts]
    for stream in streams:
        stream.start()
    assert streams[0].started.wait(60.0)
    assert not all(stream.started.is_set() for stream in streams), "all prompts are read"
    os.kill(before[0]["pid"], signal.SIGKILL)
    os.kill(before[2]["pid"], signal.SIGKILL)
    for stream in streams:
        stream.join(120.0)
        assert stream.done
        assert tuple(stream.token_ids) == reference.greedy(tuple(stream.prompt), 8).token_ids


def test_streams_go_on_when_the_router_dies(url: str, known: Known) -> None:
    before = {actor["pid"] for actor in ranks_of(url, RANKS)}
    (router,) = [one["pid"] for one in experts_of(url)["actors"] if one["role"] == "router"]
    streams = start(url, NUM_STREAMS, MAX_TOKENS)
    assert_under_way(streams)
    os.kill(router, signal.SIGKILL)
    assert_undisturbed(streams, known)
    after = {actor["pid"] for actor in ranks_of(url, RANKS)}
    assert not before & after, "the actors of a dead router must die with it"


def test_an_actor_that_dies_while_the_pipeline_starts_is_replaced(
    cluster: Cluster, checkpoint: Path
) -> None:
    config = WindroseConfig(
        model=str(checkpoint), expert_actors=2, cpus_per_actor=0.1, threads_per_actor=1
    )
    killed: list[int] = []
    striker = threading.Thread(target=_kill_the_first_of, args=("starting", killed))
    striker.start()
    with cluster.deployed(config, "starting") as url:
        striker.join(60.0)
        pids = [one["pid"] for one in ranks_of(url, [0, 1, 2])]
        assert killed and killed[0] not in pids
        (pipeline,) = {one["pipeline"] for one in experts_of(url)["actors"] if one["pipeline"]}
        names = [one["name"] for one in named_actors("starting")]
        assert {pipeline_of(name) for name in names} == {pipeline}, "all was started anew"


def named_actors(application: str) -> list[dict[str, str]]:
    named: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)
    return [one for one in named if one["namespace"] == namespace_of(application)]


def _kill_the_first_of(application: str, killed: list[int]) -> None:
    """Kill the first actor of an application to show up, before it can have been loaded."""
    deadline_s = time.monotonic() + 60.0
    while time.monotonic() < deadline_s:
        for one in named_actors(application):
            stats: Any = ray.get(ray.get_actor(one["name"], one["namespace"]).stats.remote())
            os.kill(stats.identity.pid, signal.SIGKILL)
            killed.append(stats.identity.pid)
            return
