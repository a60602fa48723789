"""The connection between ingresses and an attention actor, over real sockets."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import replace
from unittest import mock

import pytest

from actors.link import Kind, Link, pack_events, pack_requests, unpack_events, unpack_requests
from actors.messages import GenerateRequest, TokenEvent
from model.sampling_params import SamplingParams, TokenLogprobs
from tests.actors.link_ends import HOST, Ingress, Play, Rank, connected, event

FULL_EVENT = TokenEvent(
    "r#0",
    (5, 31999),
    (TokenLogprobs(-math.inf, ((3, -0.1), (4, -math.inf))), TokenLogprobs(-1 / 3, ())),
    "stop",
    2,
    17,
    bytes(range(256)),
    0.1 + 0.2,
    (1764381234.1234567, 1764381235.5),
)
FULL_REQUEST = GenerateRequest(
    'r"\u00e9#0',
    "ingress",
    (1, 2, 3),
    SamplingParams(8, 2**63 - 1, 0.3, 0.9, 40, 0.01, 0.1, -0.2, 1.1, ((5, -100.0),), 3, (7,), True),
    (4, 5),
    1764381234.1234567,
    -3,
    "weights",
    "mean",
)


def test_every_field_survives() -> None:
    plain = TokenEvent("r#0", (5,))
    assert unpack_events(pack_events([FULL_EVENT, plain])) == [FULL_EVENT, plain]
    bare = GenerateRequest("r#0", "i", (), SamplingParams(1, 0))
    assert unpack_requests(pack_requests([FULL_REQUEST, bare])) == [FULL_REQUEST, bare]
    for one in (FULL_EVENT, FULL_REQUEST):
        defaults = [f.default for f in one.__dataclass_fields__.values()]
        values = [getattr(one, name) for name in one.__dataclass_fields__]
        assert all(value != default for value, default in zip(values, defaults)), "a field untold"


def test_requests_go_out_and_events_come_back_to_whom_they_are_for(play: Play) -> None:
    async def scenario() -> None:
        rank, one, other = Rank(), Ingress("one"), Ingress("other")
        async with connected(rank, one, other):
            one.link.submit([FULL_REQUEST])
            await rank.hear()
            assert rank.taken == [FULL_REQUEST]
            rank.links.tell("other", [FULL_EVENT])
            rank.links.tell("one", [event(1), event(2)])
            await one.hear()
            await other.hear()
            assert (one.events, other.events) == ([event(1), event(2)], [FULL_EVENT])
            other.link.abort(["x", "y"])
            await rank.hear()
            assert rank.aborted == ["x", "y"]

    play(scenario())


def test_what_is_refused_is_named(play: Play) -> None:
    async def scenario() -> None:
        rank, ingress = Rank(), Ingress()
        rank.serves = False
        async with connected(rank, ingress):
            ingress.link.submit([FULL_REQUEST, replace(FULL_REQUEST, request_id="s#1")])
            await ingress.hear()
            assert ingress.refused == [FULL_REQUEST.request_id, "s#1"]

    play(scenario())


def test_what_is_said_before_the_connection_is_there_waits_for_it(play: Play) -> None:
    async def scenario() -> None:
        rank, ingress = Rank(), Ingress()
        for token in range(5):
            rank.links.tell("i", [event(token)])
        ingress.link.abort(["early"])
        async with connected(rank, ingress):
            await rank.hear()
            assert rank.aborted == ["early"]
            await ingress.hear()
            assert ingress.events == [event(token) for token in range(5)]

    play(scenario())


def test_the_end_comes_behind_all_that_was_told(play: Play) -> None:
    async def scenario() -> None:
        rank, ingress = Rank(), Ingress()
        large = TokenEvent("r#0", (), vector=random.Random(3).randbytes(5_000_000))
        async with connected(rank, ingress) as (run,):
            rank.links.tell("i", [large])
            rank.links.tell("i", [event(1)])
            rank.links.close()
            async with asyncio.timeout(10.0):
                await run
            assert ingress.events == [large, event(1)]
            assert not ingress.link.is_open
            ingress.link.submit([FULL_REQUEST])  # nobody hears it, and nothing breaks
            with pytest.raises(RuntimeError, match="no connections any more"):
                await rank.links.listen(HOST)

    play(scenario())


def test_another_thread_tells_faster_than_the_ingress_hears(play: Play) -> None:
    async def scenario() -> None:
        rank, ingress = Rank(), Ingress()
        said = [TokenEvent("r#0", (i,), vector=bytes(i % 7 * 10_000)) for i in range(2000)]

        def tell() -> None:
            for one in said:
                rank.links.tell("i", [one])

        async with connected(rank, ingress) as (run,):
            await asyncio.to_thread(tell)
            rank.links.close()
            async with asyncio.timeout(20.0):
                await run
            assert ingress.events == said

    play(scenario())


def test_a_second_connection_of_an_ingress_takes_over(play: Play) -> None:
    async def scenario() -> None:
        rank, first, second = Rank(), Ingress(), Ingress()
        async with connected(rank, first) as (ended,), connected(rank, second):
            async with asyncio.timeout(10.0):
                await ended
            rank.links.tell("i", [event(1)])
            await second.hear()
            assert (first.events, second.events) == ([], [event(1)])
            assert not rank.dropped

    play(scenario())


async def answer_to(rank: Rank, said: bytes) -> bytes:
    """What a stranger hears until the end of the connection."""
    address = await rank.links.listen(HOST)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(said)
    async with asyncio.timeout(10.0):
        heard = await reader.read()
    writer.close()
    return heard


def message(kind: int, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + bytes((kind,)) + body


@pytest.mark.parametrize(
    "said",
    [
        message(Kind.HELLO, bytes(32) + b"i"),
        message(Kind.HELLO, b""),
        message(Kind.SUBMIT, pack_requests([FULL_REQUEST])),
        message(Kind.ABORT, b'["r#0"]'),
        message(99, b""),
        message(Kind.HELLO, bytes(2000)),
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        b"\xff" * 64,
    ],
    ids=["secret", "none", "submit", "abort", "kind", "long", "http", "noise"],
)
def test_a_stranger_is_neither_heard_nor_told(play: Play, said: bytes) -> None:
    async def scenario() -> None:
        rank, ingress = Rank(), Ingress()
        rank.links.tell("i", [event(1)])
        assert await answer_to(rank, said) == b""
        assert not rank.taken and not rank.aborted and not rank.dropped
        async with connected(rank, ingress):
            await ingress.hear()
            assert ingress.events == [event(1)]

    play(scenario())


@pytest.mark.parametrize(
    "said", [b"[", b"[{}]", b'[{"request_id": 1}]', b"\xff"], ids=["cut", "empty", "type", "utf8"]
)
def test_an_ingress_that_sends_what_is_no_request_loses_its_connection(
    play: Play, said: bytes
) -> None:
    async def scenario() -> None:
        rank = Rank()
        address = await rank.links.listen(HOST)
        hello = message(Kind.HELLO, address.secret + b"i")
        assert await answer_to(rank, hello + message(Kind.SUBMIT, said)) == b""
        assert not rank.taken
        rank.links.close()

    play(scenario())


def test_who_says_nothing_is_not_waited_for(play: Play) -> None:
    async def scenario() -> None:
        rank = Rank()
        with mock.patch("actors.ranks.ingress_links._HELLO_S", 0.05):
            assert await answer_to(rank, b"") == b""
        rank.links.close()

    play(scenario())


def test_a_connection_that_leads_nowhere_ends_when_it_is_given_up(play: Play) -> None:
    async def scenario() -> None:
        rank, ingress = Rank(), Ingress()
        async with connected(rank, ingress) as (run,):
            many = [replace(FULL_REQUEST, prompt_token_ids=tuple(range(50_000)))]
            for _ in range(50):  # more than the kernel takes while nobody reads
                ingress.link.submit(many)
            ingress.link.give_up()
            async with asyncio.timeout(10.0):
                await run
            assert not ingress.link.is_open

    play(scenario())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_messages_in_pieces(play: Play, size: int) -> None:
    async def scenario() -> None:
        said = [(Kind.ABORT, b'["a"]'), (Kind.ALIVE, b""), (Kind.EVENTS, bytes(300))]
        whole = b"".join(message(kind, body) for kind, body in said)
        heard: list[tuple[Kind, bytes]] = []
        link = Link(lambda _link, kind, body: heard.append((kind, body)))
        for start in range(0, len(whole), size):
            link.data_received(whole[start : start + size])
        assert heard == said

    play(scenario())
