"""An ingress's connection to one attention actor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import ray

from actors.link import (
    Kind,
    Link,
    LinkAddress,
    pack_ids,
    pack_requests,
    unpack_events,
    unpack_ids,
)
from actors.messages import GenerateRequest, StepEvents
from actors.patience import within

_CONNECT_S = 10.0


class ActorLink:
    """Lives on the ingress's event loop. What is said before it is open waits for it."""

    def __init__(
        self,
        actor: str,
        namespace: str,
        ingress_id: str,
        on_events: Callable[[str, StepEvents], None],
        on_refused: Callable[[list[str]], None],
    ) -> None:
        """Call `on_events(actor, events)` per step, `on_refused` with ids of what is not taken."""
        self._actor = actor
        self._namespace = namespace
        self._ingress_id = ingress_id
        self._on_events = on_events
        self._on_refused = on_refused
        self._link: Link | None = None
        self._unsent: list[tuple[Kind, bytes]] = []

    async def run(self) -> None:
        """Connect; return when the connection has ended.

        Raises:
            RayError: the actor is gone or does not serve.
            ValueError: there is none of this name.
            OSError: it cannot be reached.
        """
        handle = await asyncio.to_thread(ray.get_actor, self._actor, self._namespace)
        address: LinkAddress = await handle.link.remote()
        _, link = await within(
            _CONNECT_S,
            asyncio.get_running_loop().create_connection(
                lambda: Link(self._hear), address.host, address.port
            ),
        )
        try:
            link.send(Kind.HELLO, address.secret + self._ingress_id.encode())
            self._link = link
            for kind, body in self._unsent:
                link.send(kind, body)
            await link.ended
        finally:
            link.close()

    @property
    def opened(self) -> bool:
        """Whether it was open once."""
        return self._link is not None

    @property
    def is_open(self) -> bool:
        """Whether what is said goes out at once."""
        return self._link is not None and not self._link.ended.done()

    def submit(self, requests: list[GenerateRequest]) -> None:
        """Hand in requests: events will follow, or a refusal, or the end of the connection."""
        self._say(Kind.SUBMIT, pack_requests(requests))

    def abort(self, request_ids: list[str]) -> None:
        """Drop requests whose client is gone."""
        self._say(Kind.ABORT, pack_ids(request_ids))

    def renew(self) -> None:
        """Say that this ingress is alive."""
        if self.is_open:
            self._say(Kind.ALIVE, b"")

    def give_up(self) -> None:
        """End the connection, which may lead nowhere."""
        if self._link is not None:
            self._link.abort()

    def _say(self, kind: Kind, body: bytes) -> None:
        if self._link is None:
            self._unsent.append((kind, body))
        else:
            self._link.send(kind, body)

    def _hear(self, _link: Link, kind: Kind, body: bytes) -> None:
        if kind is Kind.EVENTS:
            self._on_events(self._actor, unpack_events(body))
        elif kind is Kind.REFUSED:
            self._on_refused(unpack_ids(body))
        else:
            raise ValueError(f"an attention actor does not send {kind.name}")
