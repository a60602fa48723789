"""Until when an attention actor takes an ingress for alive, over real sockets."""

from __future__ import annotations

import asyncio

from actors.ranks.ingress_links import LEASE_S
from tests.actors.link_ends import Ingress, Play, Rank, connected, event

SHORT_LEASE_S = 0.5


def test_a_silent_ingress_is_dropped_with_its_requests_and_its_connection(play: Play) -> None:
    async def scenario() -> None:
        rank, silent, alive = Rank(SHORT_LEASE_S), Ingress("silent"), Ingress("alive")
        async with connected(rank, silent, alive) as (ended, goes_on):
            async with asyncio.timeout(10.0):
                while not ended.done():
                    alive.link.renew()
                    await asyncio.sleep(SHORT_LEASE_S / 20)
            assert rank.dropped == ["silent"]
            assert not goes_on.done() and alive.link.is_open and not silent.link.is_open

    play(scenario())


def test_the_only_ingress_is_dropped_when_it_dies_though_no_other_has_a_word_here(
    play: Play,
) -> None:
    async def scenario() -> None:
        rank, only = Rank(SHORT_LEASE_S), Ingress("only")
        async with connected(rank, only) as (ended,):
            only.link.give_up()
            await asyncio.wait_for(ended, 10.0)
            assert not rank.dropped, "it may only have lost its connection"
            await rank.hear()
            assert rank.dropped == ["only"]

    play(scenario())


def test_an_ingress_that_dies_before_it_connects_is_dropped(play: Play) -> None:
    async def scenario() -> None:
        rank = Rank(SHORT_LEASE_S)
        rank.links.expect(["early"])  # what it sent by way of the router
        rank.links.tell("early", [event(1)])
        await rank.hear()
        assert rank.dropped == ["early"]
        rank.links.tell("early", [event(2)])  # by the step that was under way
        slow = Ingress("early")
        async with connected(rank, slow) as (ended,):  # so that it submits again what it waits for
            await asyncio.wait_for(ended, 10.0)
            assert not slow.events, "what was kept for it went with it"
            again = Ingress("early")
            async with connected(rank, again):
                rank.links.tell("early", [event(3)])
                await again.hear()
                assert again.events == [event(3)]

    play(scenario())


def test_while_a_pipeline_drains_an_ingress_is_given_up_sooner(play: Play) -> None:
    async def scenario() -> None:
        rank, ingress = Rank(), Ingress()
        async with connected(rank, ingress) as (ended,):
            ingress.link.abort([])
            await rank.hear()
            rank.links.drop_silent(LEASE_S - 1.0)
            assert not rank.dropped
            rank.links.drop_silent(0.0)
            assert rank.dropped == ["i"]
            await asyncio.wait_for(ended, 10.0)

    play(scenario())
