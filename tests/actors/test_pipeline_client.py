"""The ingress's side of pipelines that come and go, over routers and actors without processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

import pytest
from ray.exceptions import RayActorError

from actors.http.errors import Unavailable
from actors.http.request_metrics import RequestMetrics
from actors.ingress.fleet import Fleet
from actors.ingress.pipeline_client import PipelineClient
from actors.messages import GenerateRequest, TokenEvent
from actors.naming import weights_of
from actors.pipeline.assignment import Assigner
from actors.pipeline.pipeline_choice import PipelineChoice
from actors.pipeline.pipeline_report import PipelineReport
from actors.pipeline.pipeline_tally import PipelineView
from model.sampling_params import SamplingParams
from tests.actors.reports import report
from tests.actors.virtual_time import run, turns

T = TypeVar("T")
IN_A_REQUEST: ContextVar[bool] = ContextVar("in a request")  # as Serve's own variable


class Actor:
    """An attention actor as an ingress sees it."""

    def __init__(self) -> None:
        self.outbox: asyncio.Queue[list[TokenEvent] | None] = asyncio.Queue()
        self.stream = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._stream))
        self.renew = self.abort = SimpleNamespace(remote=self._hear)
        self.submit = SimpleNamespace(remote=self._take)
        self.taken: list[GenerateRequest] = []
        self.refusals: list[Exception] = []

    async def _take(self, requests: Sequence[GenerateRequest]) -> int:
        if self.refusals:
            raise self.refusals.pop()
        self.taken += requests
        return len(self.taken)

    async def _stream(self, _ingress: str) -> AsyncIterator[Any]:
        while True:
            yield self._next()

    async def _next(self) -> list[TokenEvent]:
        events = await self.outbox.get()
        if events is None:
            raise RayActorError()
        return events

    def _hear(self, *_: Any) -> asyncio.Future[None]:
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class World:
    """Routers by the names of their pipelines, each with one actor; and what they were sent."""

    def __init__(self, *names: str, sole: bool = False) -> None:
        """`sole`: the routers say that there is no other attention actor."""
        self._sole = sole
        self.actors = {name: Actor() for name in names}
        self.calls: list[tuple[str | None, list[GenerateRequest]]] = []
        self.submit = SimpleNamespace(remote=self._submit)

    def broadcast(self, method: str, *_: Any) -> Any:
        async def answers(**_: Any) -> list[Any]:
            assert IN_A_REQUEST.get(None) is None
            assert method == "view"
            return [PipelineView(self._report(name), {}, {}, []) for name in self.actors]

        return SimpleNamespace(results_async=answers)

    def _report(self, name: str) -> PipelineReport:
        return report(name, sole_attention=f"{name}/attention/0" if self._sole else None)

    async def _submit(
        self, requests: Sequence[GenerateRequest], pipeline: str | None
    ) -> list[str | None]:
        assert IN_A_REQUEST.get(None) is None, "Serve gives calls of one request one id"
        self.calls.append((pipeline, list(requests)))
        while not self.actors:
            await asyncio.sleep(0.1)
        name = pipeline if pipeline in self.actors else next(iter(self.actors))
        able = [one.weights in ("", weights_of(name)) for one in requests]
        return [f"{name}/attention/0" if fit else None for fit in able]

    def say(self, name: str, request: GenerateRequest, *token_ids: int, end: bool = False) -> None:
        event = TokenEvent(request.request_id, token_ids, finish_reason="stop" if end else None)
        self.actors[name].outbox.put_nowait([event])

    def kill(self, name: str) -> None:
        self.actors.pop(name).outbox.put_nowait(None)


@contextmanager
def clocked(world: World) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    clock = SimpleNamespace(monotonic=loop.time)
    with (
        mock.patch("actors.ingress.pipeline_client.time", clock),
        mock.patch("actors.ingress.fleet.time", clock),
        mock.patch("ray.get_actor", lambda name, _: world.actors[name.split("/")[0]]),
    ):
        yield


def play(world: World, scenario: Any, **settings: Any) -> None:
    async def work() -> None:
        IN_A_REQUEST.set(True)
        with clocked(world):
            choice = PipelineChoice(Assigner(4))
            fields = {"asleep_is_ready": False, **settings}
            fleet = Fleet(world, world, "ns", "m", ("i", RequestMetrics()))  # type: ignore[arg-type]
            client = PipelineClient(world, "ns", "i", fleet, 60.0, choice, **fields)  # type: ignore[arg-type]
            client.ready()  # begins to look
            await turns()
            await scenario(client)
            client._fleet._poll.cancel()  # type: ignore[union-attr]
            for task in [*client._tasks, *client._streams.values()]:
                task.cancel()
            await turns()

    run(work())


def asking(name: str = "r") -> GenerateRequest:
    return GenerateRequest(name, "i", (1, 2, 3), SamplingParams(8, seed=0))


def collect(client: PipelineClient, name: str = "r") -> asyncio.Task[list[int]]:
    """The tokens of one request."""

    async def tokens() -> list[int]:
        return [token async for event in client.generate(asking(name)) for token in event.token_ids]

    return start(tokens())


def start(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.get_running_loop().create_task(work)


def test_what_arrives_together_is_shared_out_one_call_for_each_pipeline() -> None:
    world = World("w-a", "w-b")

    async def scenario(client: PipelineClient) -> None:
        asked = [collect(client, str(i)) for i in range(5)]
        await turns()
        assert sorted((name or "", len(batch)) for name, batch in world.calls) == [
            ("w-a", 3),
            ("w-b", 2),
        ]
        for name, batch in world.calls:
            for request in batch:
                world.say(name or "", request, 7, end=True)
        assert [await one for one in asked] == [[7]] * 5

    play(world, scenario)


def test_an_answer_that_has_begun_never_goes_on_with_other_weights() -> None:
    world = World("a-1", "b-2")

    async def scenario(client: PipelineClient) -> None:
        asked = collect(client)
        await turns()
        ((name, (request,)),) = world.calls
        assert name == "a-1"
        world.say("a-1", request, 5, 6)
        await turns()
        world.kill("a-1")
        begun_s = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable, match="has been replaced"):
            await asked
        assert asyncio.get_running_loop().time() - begun_s < 15.0
        for pipeline, batch in world.calls[1:]:
            assert pipeline != "b-2"
            assert all(one.weights == "a" for one in batch)

    play(world, scenario)


def test_it_goes_on_where_the_same_weights_are() -> None:
    world = World("a-1", "b-2", "a-3")

    async def scenario(client: PipelineClient) -> None:
        asked = collect(client)
        await turns()
        world.say("a-1", world.calls[0][1][0], 5, 6)
        await turns()
        world.kill("a-1")
        await asyncio.sleep(3.0)
        name, (request,) = world.calls[-1]
        assert (name, request.output_token_ids) == ("a-3", (5, 6))
        world.say("a-3", request, 7, end=True)
        assert await asked == [5, 6, 7]

    play(world, scenario)


def test_a_pooled_one_begins_anew_where_its_actor_dies() -> None:
    world = World("a-1", "b-2")

    async def scenario(client: PipelineClient) -> None:
        pooled = replace(asking(), pooling="mean")

        async def events() -> list[TokenEvent]:
            return [event async for event in client.generate(pooled)]

        asked = start(events())
        await turns()
        ((_, (first,)),) = world.calls
        world.kill("a-1")
        await turns()
        (_, (again,)) = world.calls[-1]
        assert again.request_id != first.request_id
        assert (again.pooling, again.prompt_token_ids) == ("mean", first.prompt_token_ids)
        end = TokenEvent(again.request_id, (), None, "stop", vector=b"1234")
        world.actors["b-2"].outbox.put_nowait([end])
        (told,) = await asked
        assert told.recovered is not None  # the break is told of with the end
        assert replace(told, recovered=None) == end

    play(world, scenario)


def test_the_first_tokens_after_a_break_tell_of_it() -> None:
    world = World("a-1", "a-2")

    async def scenario(client: PipelineClient) -> None:
        async def breaks() -> list[bool]:
            return [event.recovered is not None async for event in client.generate(asking())]

        asked = start(breaks())
        await turns()
        world.say("a-1", world.calls[0][1][0], 5)
        await turns()
        world.kill("a-1")
        await asyncio.sleep(3.0)
        _, (request,) = world.calls[-1]
        world.say("a-2", request, 6)
        world.say("a-2", request, 7, end=True)
        assert await asked == [False, True, False]

    play(world, scenario)


def test_one_that_has_not_begun_goes_anywhere() -> None:
    world = World("a-1", "b-2")

    async def scenario(client: PipelineClient) -> None:
        asked = collect(client)
        await turns()
        world.kill("a-1")
        await turns()
        _, (request,) = world.calls[-1]
        assert request.weights == ""
        world.say("b-2", request, 7, end=True)
        assert await asked == [7]

    play(world, scenario)


def test_without_any_pipeline_serve_is_left_with_the_request() -> None:
    world = World()

    async def scenario(client: PipelineClient) -> None:
        assert client.ready()
        asked = collect(client)
        await asyncio.sleep(5.0)
        ((name, (request,)),) = world.calls
        assert name is None
        world.actors["w-a"] = Actor()
        await asyncio.sleep(2.0)
        world.say("w-a", request, 7, end=True)
        assert await asked == [7]
        assert client.ready()
        assert len(world.calls) == 1

    play(world, scenario, asleep_is_ready=True)


def test_no_pipeline_is_not_ready_where_there_must_be_one() -> None:
    async def scenario(client: PipelineClient) -> None:
        assert not client.ready()

    play(World(), scenario)


def test_the_end_of_the_server_ends_what_runs_with_an_error() -> None:
    world = World("w-a")

    async def scenario(client: PipelineClient) -> None:
        asked = collect(client)
        await turns()
        client.give_up()
        with pytest.raises(Unavailable, match="shut down"):
            await asked

    play(world, scenario)


def test_one_that_drains_unseen_serves_for_as_long_as_it_sends_tokens() -> None:
    world = World("w-a")

    async def scenario(client: PipelineClient) -> None:
        asked = collect(client)
        await turns()
        ((_, (request,)),) = world.calls
        actor = world.actors.pop("w-a")  # as Serve: it is shown no more, but it lives
        for token in range(5):
            await asyncio.sleep(50.0)  # altogether far longer than a request may wait
            actor.outbox.put_nowait([TokenEvent(request.request_id, (token,))])
        await turns()
        actor.outbox.put_nowait([TokenEvent(request.request_id, (9,), finish_reason="stop")])
        assert await asked == [0, 1, 2, 3, 4, 9]

    play(world, scenario)


async def open_stream(client: PipelineClient, world: World) -> None:
    """One answer by way of the router: from then on the client knows the actor."""
    first = collect(client, "first")
    await turns()
    ((name, (request,)),) = world.calls
    assert name == "a-1"
    world.say("a-1", request, 5, end=True)
    assert await first == [5]


def test_the_only_attention_actor_gets_requests_past_the_router() -> None:
    world = World("a-1", sole=True)

    async def scenario(client: PipelineClient) -> None:
        await open_stream(client, world)
        actor = world.actors["a-1"]
        asked = [collect(client, str(i)) for i in range(2)]
        await turns()
        assert [one.request_id for one in actor.taken] == ["0#0", "1#0"]
        for request in actor.taken:
            world.say("a-1", request, 6, 7, end=True)
        assert [await one for one in asked] == [[6, 7]] * 2
        assert len(world.calls) == 1

    play(world, scenario)


@pytest.mark.parametrize(
    ("error", "attempt"),
    [(RuntimeError("it does not serve"), "second#0"), (RayActorError(), "second#1")],
    ids=["refuses", "out of reach"],
)
def test_what_the_only_attention_actor_does_not_take_is_handed_in_again(
    error: Exception, attempt: str
) -> None:
    world = World("a-1", sole=True)

    async def scenario(client: PipelineClient) -> None:
        await open_stream(client, world)
        world.actors["a-1"].refusals = [error]
        asked = collect(client, "second")
        await turns()
        taken = world.calls[1:] or [("a-1", world.actors["a-1"].taken)]
        ((_, (request,)),) = taken
        assert request.request_id == attempt, "one that may be there already needs a new name"
        world.say("a-1", request, 6, end=True)
        assert await asked == [6]

    play(world, scenario)


def test_what_the_only_attention_actor_took_goes_on_when_it_dies() -> None:
    world = World("a-1", sole=True)

    async def scenario(client: PipelineClient) -> None:
        await open_stream(client, world)
        asked = collect(client, "second")
        await turns()
        (request,) = world.actors["a-1"].taken
        world.say("a-1", request, 6)
        await turns()
        world.actors["a-2"] = Actor()
        world.kill("a-1")
        await asyncio.sleep(3.0)
        _, (again,) = world.calls[-1]
        assert again.output_token_ids == (6,)
        world.say("a-2", again, 7, end=True)
        assert await asked == [6, 7]

    play(world, scenario)
