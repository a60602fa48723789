"""The ingress's side of pipelines that come and go, over routers and actors without processes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from actors.http.errors import Unavailable
from actors.ingress.pipeline_client import PipelineClient
from actors.messages import TokenEvent
from tests.actors.client_world import Actor, World, asking, collect, play, start
from tests.actors.virtual_time import turns


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
