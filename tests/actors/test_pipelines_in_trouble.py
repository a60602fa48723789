"""Pipelines that cannot serve, and routers that hang: where an ingress's requests go on."""

from __future__ import annotations

import asyncio

from actors.ingress.pipeline_client import PipelineClient
from tests.actors.client_world import World, collect, play
from tests.actors.virtual_time import turns


def test_what_runs_where_nothing_can_be_served_goes_on_where_it_can() -> None:
    world = World("a-1", "a-2", "b-3")

    async def scenario(client: PipelineClient) -> None:
        asked, other = collect(client), collect(client, "other")
        await turns()
        first = {name: batch[0] for name, batch in world.calls}
        assert first.keys() == {"a-1", "a-2"}
        names = {request.request_id[:-2]: name or "" for name, (request,) in world.calls}
        sick, well = names["r"], names["other"]
        world.say(sick, first[sick], 5)
        world.ailing = {sick}
        await asyncio.sleep(9.0)
        assert len(world.calls) == 2, "most recoveries are over by then"
        await asyncio.sleep(3.0)
        name, (again,) = world.calls[-1]
        assert (name, again.request_id, again.output_token_ids) == (well, "r#1", (5,))
        assert first[sick].request_id in world.actors[sick].aborted
        world.say(well, again, 6, end=True)
        world.say(well, first[well], 7, end=True)
        assert (await asked, await other) == ([5, 6], [7])

    play(world, scenario)


def test_where_no_other_can_go_on_it_waits_for_its_own() -> None:
    world = World("a-1", "b-2")

    async def scenario(client: PipelineClient) -> None:
        asked = collect(client)
        await turns()
        ((name, (request,)),) = world.calls
        assert name == "a-1"
        world.say("a-1", request, 5)
        world.ailing = {"a-1"}
        await asyncio.sleep(50.0)
        assert len(world.calls) == 1
        world.ailing = set()
        await asyncio.sleep(30.0)
        world.say("a-1", request, 6, end=True)
        assert await asked == [5, 6]

    play(world, scenario)


def test_a_router_that_hangs_blinds_nobody_to_the_others() -> None:
    world = World("w-a", "w-b")

    async def scenario(client: PipelineClient) -> None:
        world.hanging = {"w-a"}
        await asyncio.sleep(5.0)
        assert client.ready()
        asked = collect(client)
        await turns()
        ((name, (request,)),) = world.calls
        assert name == "w-b"
        world.say("w-b", request, 7, end=True)
        assert await asked == [7]

    play(world, scenario)


def test_a_router_that_hangs_with_a_request_in_its_hands_does_not_keep_it() -> None:
    world = World("w-a", "w-b")
    world.stuck = {"w-a", "w-b"}

    async def scenario(client: PipelineClient) -> None:
        asked = collect(client)
        await turns()
        ((first, _),) = world.calls
        world.stuck = {first or ""}
        await asyncio.sleep(25.0)
        assert len(world.calls) == 1, "it waits for something itself, and says how it is"
        world.hanging = {first or ""}
        await asyncio.sleep(12.0)
        name, (request,) = world.calls[-1]
        assert {name, first} == {"w-a", "w-b"} and request.request_id == "r#1"
        world.say(name or "", request, 7, end=True)
        assert await asked == [7]

    play(world, scenario)


def test_what_nobody_can_take_just_now_is_not_sent_to_and_fro() -> None:
    world = World("a-1", "b-2")

    async def scenario(client: PipelineClient) -> None:
        world.ailing = {"a-1", "b-2"}
        await asyncio.sleep(1.5)
        world.none = True  # a router answers so after a while in which it cannot serve
        asked = collect(client)
        await asyncio.sleep(30.0)
        assert len(world.calls) == 1
        world.none, world.ailing = False, {"b-2"}
        await asyncio.sleep(1.5)
        name, (request,) = world.calls[-1]
        assert name == "a-1" and len(world.calls) == 2
        world.say("a-1", request, 7, end=True)
        assert await asked == [7]

    play(world, scenario)


def test_what_runs_in_a_pipeline_that_is_seen_no_more_goes_on_in_another() -> None:
    world = World("a-1", "a-2")

    async def scenario(client: PipelineClient) -> None:
        asked = collect(client)
        await turns()
        ((first, (request,)),) = world.calls
        world.say(first or "", request, 5)
        world.hanging = {first or ""}
        await asyncio.sleep(50.0)
        assert len(world.calls) == 1, "one that drains is not seen either"
        await asyncio.sleep(15.0)
        name, (again,) = world.calls[-1]
        assert {name, first} == {"a-1", "a-2"} and again.output_token_ids == (5,)
        world.say(name or "", again, 6, end=True)
        assert await asked == [5, 6]

    play(world, scenario)
