"""Both ends of the connection between an ingress and an attention actor, for tests of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from actors.ingress.actor_link import ActorLink
from actors.messages import GenerateRequest, StepEvents, TokenEvent
from actors.ranks.ingress_links import LEASE_S, IngressLinks

HOST = "127.0.0.1"
Play = Callable[[Coroutine[Any, Any, None]], None]  # runs a scenario; a fixture


class Rank:
    """What an attention rank does with what it is told; and its connections."""

    def __init__(self, lease_s: float = LEASE_S) -> None:
        self.links = IngressLinks(self, lease_s)
        self.taken: list[GenerateRequest] = []
        self.aborted: list[str] = []
        self.dropped: list[str] = []
        self.serves = True
        self.told = asyncio.Event()

    def submit(self, requests: Sequence[GenerateRequest]) -> int:
        if not self.serves:
            raise RuntimeError("not now")
        self.taken += requests
        self.told.set()
        return len(self.taken)

    def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += request_ids
        self.told.set()

    def drop_ingress(self, ingress_id: str) -> None:
        self.dropped.append(ingress_id)
        self.told.set()

    async def hear(self) -> None:
        async with asyncio.timeout(10.0):
            await self.told.wait()
        self.told.clear()


class Ingress:
    """One ingress's connection, and what it heard."""

    def __init__(self, name: str = "i") -> None:
        self.link = ActorLink("a", "ns", name, self._events, self._refused)
        self.events: StepEvents = []
        self.refused: list[str] = []
        self._heard = asyncio.Event()

    def _events(self, actor: str, events: StepEvents) -> None:
        assert actor == "a"
        self.events += events
        self._heard.set()

    def _refused(self, ids: list[str]) -> None:
        self.refused += ids
        self._heard.set()

    async def hear(self) -> None:
        async with asyncio.timeout(10.0):
            await self._heard.wait()
        self._heard.clear()


@asynccontextmanager
async def connected(rank: Rank, *ingresses: Ingress) -> AsyncIterator[list[asyncio.Task[None]]]:
    handle = SimpleNamespace(link=SimpleNamespace(remote=lambda: rank.links.listen(HOST)))
    with mock.patch("ray.get_actor", lambda *_: handle):
        runs = [asyncio.create_task(one.link.run()) for one in ingresses]
        async with asyncio.timeout(10.0):
            while not all(one.link.is_open for one in ingresses):
                await asyncio.sleep(0)
        yield runs
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
        rank.links.close()


def event(token: int) -> TokenEvent:
    return TokenEvent("r#0", (token,))
