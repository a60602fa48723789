"""An ingress and its connections to attention actors: past the router, broken, and renewed.

The loop's time is virtual (tests/actors/virtual_time.py): its sleeps take none.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from actors.http.errors import Unavailable
from actors.ingress.pipeline_client import PipelineClient
from tests.actors.client_world import Actor, World, asking, collect, play
from tests.actors.virtual_time import turns


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


def test_what_the_only_attention_actor_does_not_take_goes_to_the_router() -> None:
    world = World("a-1", sole=True)

    async def scenario(client: PipelineClient) -> None:
        await open_stream(client, world)
        world.actors["a-1"].serves = False
        asked = collect(client, "second")
        await turns()
        pipeline, (request,) = world.calls[-1]
        assert (pipeline, request.request_id) == ("a-1", "second#0")
        world.say("a-1", request, 6, end=True)
        assert await asked == [6]
        assert len(world.calls) == 2 and not world.actors["a-1"].taken

    play(world, scenario)


def test_one_whose_client_left_is_dropped_and_no_refusal_of_it_matters() -> None:
    world = World("a-1", sole=True)

    async def scenario(client: PipelineClient) -> None:
        await open_stream(client, world)
        actor = world.actors["a-1"]
        asked = collect(client, "second")
        await turns()
        actor.serves = False
        refused = collect(client, "third")
        await turns(3)
        for one in (asked, refused):
            one.cancel()
        await turns()
        assert "second#0" in actor.aborted
        assert all(
            request.request_id != "second#0" for _, batch in world.calls for request in batch
        )
        assert not client._live

    play(world, scenario)


def test_an_actor_hears_every_second_that_the_ingress_is_alive() -> None:
    world = World("a-1", sole=True)

    async def scenario(client: PipelineClient) -> None:
        await open_stream(client, world)
        before = world.actors["a-1"].renewed
        await asyncio.sleep(5.0)
        assert 4 <= world.actors["a-1"].renewed - before <= 6

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


def test_what_a_broken_connection_leaves_behind_is_dropped_by_the_next_one() -> None:
    world = World("a-1", sole=True)

    async def scenario(client: PipelineClient) -> None:
        await open_stream(client, world)
        actor = world.actors["a-1"]
        asked, left = collect(client, "second"), collect(client, "third")
        await turns()
        world.say("a-1", actor.taken[0], 6)
        await turns()
        assert not actor.aborted
        actor.outbox.put_nowait(None)  # the connection ends, the actor does not
        await turns(2)
        left.cancel()
        await asyncio.sleep(1.0)
        again = {one.request_id: one for _, batch in world.calls for one in batch}
        assert sorted(again) == ["first#0", "second#1", "third#1"]
        assert sorted(actor.aborted)[:2] == ["second#0", "third#0"]
        assert "second#1" not in actor.aborted
        world.say("a-1", again["second#1"], 7, end=True)
        assert await asked == [6, 7]

    play(world, scenario)


def test_what_was_left_is_told_again_where_the_next_connection_fails() -> None:
    world = World("a-1", sole=True)

    async def scenario(client: PipelineClient) -> None:
        await open_stream(client, world)
        actor = world.actors["a-1"]
        asked = collect(client, "second")
        await turns()
        for _ in range(2):  # the second one ends as soon as it is there
            actor.outbox.put_nowait(None)
        await asyncio.sleep(1.0)
        assert actor.aborted.count("second#0") == 2
        last = world.calls[-1][1][-1]
        assert last.request_id not in actor.aborted
        world.say("a-1", last, 7, end=True)
        assert await asked == [7]

    play(world, scenario)


def test_an_actor_that_never_comes_back_is_forgotten() -> None:
    world = World("a-1", sole=True)

    async def scenario(client: PipelineClient) -> None:
        await open_stream(client, world)
        asked = collect(client, "second")
        await turns()
        world.actors["a-2"] = Actor()
        world.kill("a-1")
        await asyncio.sleep(3.0)
        world.say("a-2", world.calls[-1][1][0], 7, end=True)
        assert await asked == [7]
        assert list(client._links._left) == ["a-1/attention/0"]
        await asyncio.sleep(62.0)
        assert not client._links._left

    play(world, scenario)


def test_one_that_its_router_serves_without_is_not_waited_for() -> None:
    world = World("a-1")

    async def scenario(client: PipelineClient) -> None:
        asked = collect(client)
        await turns()
        world.say("a-1", world.calls[0][1][0], 5)
        world.members = ()
        await asyncio.sleep(1.5)
        assert len(world.calls) == 1, "the look may be older than the actor"
        await asyncio.sleep(1.5)
        ((_, _), (_, (again,))) = world.calls
        assert (again.request_id, again.output_token_ids) == ("r#1", (5,))
        world.members = None
        world.say("a-1", again, 6, end=True)
        assert await asked == [5, 6]

    play(world, scenario)


def test_a_connection_that_ends_while_nobody_knows_who_has_a_request() -> None:
    """What it began on that connection is lost, and an actor may have dropped it with its end."""
    world = World("a-1")

    async def scenario(client: PipelineClient) -> None:
        await open_stream(client, world)
        actor = world.actors["a-1"]
        world.answering.clear()
        asked = collect(client, "second")
        await turns()
        assert [one.request_id for one in world.calls[-1][1]] == ["second#0"]
        actor.outbox.put_nowait(None)  # the connection ends, the actor does not
        await turns()
        world.answering.set()
        await turns()
        assert [one.request_id for one in world.calls[-1][1]] == ["second#1"]
        await turns()
        assert actor.aborted == ["second#0"]
        world.say("a-1", world.calls[-1][1][0], 7, end=True)
        assert await asked == [7]

    play(world, scenario)


def test_what_comes_on_the_connection_after_is_not_taken_for_the_first_tokens() -> None:
    world = World("a-1")

    async def scenario(client: PipelineClient) -> None:
        await open_stream(client, world)
        actor = world.actors["a-1"]
        world.answering.clear()
        asked = collect(client, "second")
        await turns()
        ((early,),) = [batch for _, batch in world.calls[-1:]]
        actor.outbox.put_nowait(None)  # with its first token, which nobody has seen
        await turns()
        client._links.ensure("a-1/attention/0")  # for another's sake
        await turns()
        world.say("a-1", early, 6)
        world.say("a-1", early, 7, end=True)
        await turns()
        world.answering.set()
        await turns()
        again = world.calls[-1][1][0]
        assert (again.request_id, again.output_token_ids) == ("second#1", ())
        for token in (5, 6):
            world.say("a-1", again, token)
        world.say("a-1", again, 7, end=True)
        assert await asked == [5, 6, 7]

    play(world, scenario)


def test_a_connection_that_cannot_be_made_is_tried_with_pauses_and_not_for_ever() -> None:
    world = World("a-1")
    world.unreachable = {"a-1"}

    async def scenario(client: PipelineClient) -> None:
        begun_s = asyncio.get_running_loop().time()
        asked = collect(client)
        await asyncio.sleep(10.0)
        assert 10 < len(world.calls) < 100
        with pytest.raises(Unavailable, match="no pipeline can serve"):
            await asked
        assert asyncio.get_running_loop().time() - begun_s == pytest.approx(60.0, abs=1.0)

    play(world, scenario)


def test_one_that_can_be_reached_again_goes_on() -> None:
    world = World("a-1")
    world.unreachable = {"a-1"}

    async def scenario(client: PipelineClient) -> None:
        asked = collect(client)
        await asyncio.sleep(5.0)
        world.unreachable.clear()
        await asyncio.sleep(1.0)
        again = world.calls[-1][1][0]
        assert again.request_id in world.actors["a-1"].aborted or again.request_id != "r#0"
        world.say("a-1", again, 7, end=True)
        assert await asked == [7]

    play(world, scenario)


def test_an_actor_is_told_of_what_it_makes_for_nobody() -> None:
    world = World("a-1")

    async def scenario(client: PipelineClient) -> None:
        await open_stream(client, world)
        actor = world.actors["a-1"]
        forgotten = replace(asking("forgotten"), request_id="forgotten#3")
        world.say("a-1", forgotten, 5)
        await turns()
        assert actor.aborted == ["forgotten#3"]
        world.say("a-1", forgotten, 6, end=True)
        await turns()
        assert actor.aborted == ["forgotten#3"], "that was its last"

    play(world, scenario)
