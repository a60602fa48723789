"""Several ingresses give one answer: each asks the others and the routers, and remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.http.errors import Conflict
from actors.http.request_metrics import RequestMetrics
from actors.ingress.fleet import Fleet
from actors.pipeline.pipeline_tally import PipelineTally
from actors.placement.placement_messages import (
    ChangeOutcome,
    ChangeRefused,
    ChangeReport,
    PlacementChange,
    Replicate,
)
from actors.ranks.actor_stats import ActorStats
from tests.actors.surveyed_actors import actor, report

HANGS = object()  # in place of an answer: there is none


class Broadcast:
    """What a Serve handle's broadcast returns."""

    def __init__(self, results: Sequence[object]) -> None:
        self._results = results

    async def results_async(self, **_options: object) -> Sequence[object]:
        if not self._results:
            raise RuntimeError("no replica is there")
        if HANGS in self._results:
            raise TimeoutError("as Serve has it: of all answers together")
        return self._results

    async def _fetch_replica_results_async(self) -> Sequence[object]:
        async def get(result: object) -> object:
            if result is HANGS:
                await asyncio.Event().wait()
            return result

        if not self._results:
            raise RuntimeError("no replica is there")
        return [SimpleNamespace(get_async=partial(get, result)) for result in self._results]


class Handle:
    """A handle of a deployment whose replicas come and go."""

    def __init__(self, replicas: dict[str, Any]) -> None:
        self._replicas = replicas

    def broadcast(self, method: str, *args: object) -> Broadcast:
        calls: list[Callable[..., object]] = [
            getattr(one, method) for one in self._replicas.values()
        ]
        return Broadcast([call(*args) for call in calls])


class FakeRouter:
    def __init__(self, name: str) -> None:
        self.name = name
        self.tally = PipelineTally(name, 0)
        self.now: dict[int, ActorStats] = {}

    def view(self, heard: Any, fresh: bool) -> object:
        self.tally.take(0.0, self.now)
        plain = report()
        told = replace(plain, router=replace(plain.router, pipeline=self.name))
        return self.tally.view(0.0, heard, told)

    def ran(self, rank: int, pid: int, rows: int) -> None:
        one = actor(rank, "attention", self.name, num_rows=rows, expert_tokens=[[rows, rows]])
        self.now[rank] = replace(one, identity=replace(one.identity, pid=pid))


class Changing:
    """A router that answers a change with `answer`."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def change(self, change: PlacementChange) -> object:
        assert change == Replicate(3)
        return self._answer


class World:
    """Routers and ingresses, any of which may be gone."""

    def __init__(self) -> None:
        self.routers: dict[str, FakeRouter] = {}
        self.ingresses: dict[str, Fleet] = {}
        self.metrics: dict[str, RequestMetrics] = {}

    def ingress(self, name: str) -> None:
        self.metrics[name] = RequestMetrics()
        router, ingress = cast(Any, Handle(self.routers)), cast(Any, Handle(self.ingresses))
        self.ingresses[name] = Fleet(router, ingress, "ns", "m", (name, self.metrics[name]))

    def scrape(self, name: str) -> dict[str, float]:
        text = asyncio.run(self.ingresses[name].metrics())
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
        return totals


def new_world() -> World:
    world = World()
    world.routers["p0"] = FakeRouter("p0")
    for name in ("a", "b"):
        world.ingress(name)
    return world


def test_whichever_ingress_is_asked_the_answer_is_the_deployments() -> None:
    world = new_world()
    world.metrics["a"].accepted(10)
    world.metrics["b"].accepted(5)
    world.routers["p0"].ran(0, 1, 7)
    answers = [world.scrape(name) for name in ("a", "b", "a")]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["windrose_prompt_tokens_total"] == 15
    assert answers[0]["windrose_engine_rows_total"] == 7
    assert answers[0]["windrose_expert_tokens_total"] == 14
    assert answers[0]["windrose_num_requests_running"] == 0


def test_what_one_pipeline_refuses_is_told_beside_what_the_others_did() -> None:
    world = new_world()
    done = ChangeReport("p0", 8, True, "done", (), (), 0.1)
    answers: dict[str, object] = {
        "p2": ChangeRefused("rank 2 is being replaced"),
        "p1": replace(done, pipeline="p1"),
        "p0": done,
        "p3": RuntimeError("it died"),
    }

    def asked() -> ChangeOutcome:
        routers = {name: Changing(answer) for name, answer in answers.items()}
        fleet = Fleet(cast(Any, Handle(routers)), cast(Any, Handle({})), "ns", "m", ("a", metrics))
        return asyncio.run(fleet.change(Replicate(3)))

    metrics = world.metrics["a"]
    outcome = asked()
    assert outcome.reports == (done, answers["p1"])
    assert outcome.refused[0] == "rank 2 is being replaced"
    assert "it died" in outcome.refused[1] and len(outcome.refused) == 2
    del answers["p0"], answers["p1"]
    with pytest.raises(Conflict, match="rank 2"):
        asked()


def test_a_new_ingress_knows_what_a_dead_one_had_counted() -> None:
    world = new_world()
    world.metrics["a"].accepted(10)
    world.scrape("b")
    for name in ("a", "b"):  # both at once: the router remembers
        del world.ingresses[name]
    world.ingress("c")
    assert world.scrape("c")["windrose_prompt_tokens_total"] == 10


def test_a_replica_that_hangs_keeps_no_other_s_answer_back() -> None:
    world = new_world()
    world.routers["p0"].ran(0, 1, 7)
    world.metrics["b"].accepted(5)
    hanging = mock.Mock()
    hanging.view.return_value = hanging.tally.return_value = HANGS
    world.routers["p1"] = world.ingresses["c"] = hanging
    with mock.patch("actors.ingress.fleet._ANSWER_S", 0.1):
        found = world.scrape("a")
    assert found["windrose_engine_rows_total"] == 7
    assert found["windrose_prompt_tokens_total"] == 5


def test_a_new_pipeline_does_not_take_back_what_a_dead_one_had_counted() -> None:
    world = new_world()
    world.routers["p0"].ran(0, 1, 7)
    world.scrape("a")
    world.routers.clear()
    found = world.scrape("b")
    assert found["windrose_engine_rows_total"] == 7
    assert "windrose_num_requests_running" not in found  # a gauge is of the living
    world.routers["p1"] = FakeRouter("p1")
    world.routers["p1"].ran(0, 2, 3)
    assert [world.scrape(name)["windrose_engine_rows_total"] for name in "ab"] == [10, 10]
    assert world.scrape("b")["windrose_expert_tokens_total"] == 20


def test_experts_are_told_with_the_tokens_of_the_dead() -> None:
    world = new_world()
    world.routers["p0"].ran(0, 1, 7)
    world.scrape("a")
    world.routers["p0"].ran(0, 2, 2)
    with (
        mock.patch("ray.util.list_named_actors", lambda _all: []),
        mock.patch("ray.util.get_node_ip_address", lambda: "host"),
    ):
        body = cast(dict[str, Any], asyncio.run(world.ingresses["b"].experts()))
    assert body["tokens"] == [[9, 9]]
