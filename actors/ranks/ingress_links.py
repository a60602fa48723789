"""The ingresses of one attention actor: their connections, and until when each counts as alive."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Protocol

from actors.link import (
    LONGEST_BYTES,
    Kind,
    Link,
    LinkAddress,
    pack_events,
    pack_ids,
    unpack_ids,
    unpack_requests,
)
from actors.messages import GenerateRequest, StepEvents

LEASE_S = 15.0  # an ingress says every second that it is alive
_SECRET_BYTES = 32
_HELLO_BYTES = 1024  # at most
_HELLO_S = 10.0

logger = logging.getLogger(__name__)


class Requests(Protocol):
    """What an ingress may want done; called on the event loop."""

    def submit(self, requests: Sequence[GenerateRequest]) -> int:
        """Raises RuntimeError where none is taken."""
        ...

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop these; unknown ones are ignored."""
        ...

    def drop_ingress(self, ingress_id: str) -> None:
        """Drop all requests of one that is gone."""
        ...


class IngressLinks:
    """Lives on the actor's event loop; any thread may `tell`."""

    def __init__(self, requests: Requests, lease_s: float = LEASE_S) -> None:
        """An ingress silent for `lease_s` seconds is gone."""
        self._requests = requests
        self._lease_s = lease_s
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._server: asyncio.Task[asyncio.Server] | None = None
        self._closed = False
        self._lock = threading.Lock()  # of the next three
        self._links: dict[str, Link] = {}
        self._unsent: dict[str, list[bytes]] = {}  # to those that have no connection yet
        # Dropped before they connected: the first connection only tells them so, by its end.
        self._dropped: set[str] = set()
        self._leases: dict[str, float] = {}  # ingress -> until when it counts as alive
        self._next_look: asyncio.TimerHandle | None = None  # while there are leases
        self._awaited: set[str] = set()  # whose requests are here, and that have to connect

    async def listen(self, host: str) -> LinkAddress:
        """Where ingresses connect: on a free port of `host`, from the first call on.

        Raises:
            RuntimeError: the links are closed.
        """
        loop = asyncio.get_running_loop()
        if self._server is None or (self._server.done() and self._server.exception()):
            self._server = loop.create_task(loop.create_server(self._accept, host, 0))
        server = await asyncio.shield(self._server)
        if self._closed:
            server.close()
            raise RuntimeError("this rank takes no connections any more")
        port: int = server.sockets[0].getsockname()[1]
        return LinkAddress(host, port, self._secret)

    def _accept(self) -> Link:
        link = Link(self._greeted, _HELLO_BYTES)
        late = asyncio.get_running_loop().call_later(_HELLO_S, self._close_stranger, link)
        link.ended.add_done_callback(lambda _: late.cancel())
        return link

    def _close_stranger(self, link: Link) -> None:
        if link.on_message == self._greeted:
            link.close()

    def _greeted(self, link: Link, kind: Kind, body: bytes) -> None:
        secret, ingress_id = body[:_SECRET_BYTES], body[_SECRET_BYTES:].decode()
        if kind is not Kind.HELLO or not secrets.compare_digest(secret, self._secret):
            raise ValueError("it does not begin with the secret")
        link.on_message = partial(self._hear, ingress_id)
        link.longest_bytes = LONGEST_BYTES
        link.ended.add_done_callback(lambda _: self._lost(ingress_id, link))
        self._renew(ingress_id)
        self._awaited.discard(ingress_id)
        with self._lock:
            dropped = ingress_id in self._dropped
            self._dropped.discard(ingress_id)
            older = self._links.get(ingress_id)
            if not dropped:
                self._links[ingress_id] = link
                for events in self._unsent.pop(ingress_id, ()):
                    link.send(Kind.EVENTS, events)
        if older is not None:
            older.close()
        if self._closed or dropped:  # meanwhile: what it waits for is not here, or not all of it
            link.close()

    def _hear(self, ingress_id: str, link: Link, kind: Kind, body: bytes) -> None:
        if kind is Kind.SUBMIT:
            requests = unpack_requests(body)
            try:
                self._requests.submit(requests)
            except RuntimeError as error:
                logger.info("%d requests are refused: %s", len(requests), error)
                link.send(Kind.REFUSED, pack_ids([one.request_id for one in requests]))
        elif kind is Kind.ABORT:
            self._requests.abort(unpack_ids(body))
        elif kind is Kind.ALIVE:
            self._renew(ingress_id)
        else:
            raise ValueError(f"an ingress does not send {kind.name}")

    def _lost(self, ingress_id: str, link: Link) -> None:
        with self._lock:
            if self._links.get(ingress_id) is link:
                del self._links[ingress_id]

    def tell(self, ingress_id: str, events: StepEvents) -> None:
        """Send an ingress what a step made for it, at once or when it connects. Any thread."""
        body = pack_events(events)
        with self._lock:
            link = self._links.get(ingress_id)
            if link is None and ingress_id not in self._dropped:
                self._unsent.setdefault(ingress_id, []).append(body)
        if link is not None:
            link.send(Kind.EVENTS, body)

    def expect(self, ingress_ids: Iterable[str]) -> None:
        """Requests of these have come, maybe by way of the router: a connection will follow."""
        for ingress_id in ingress_ids:
            if ingress_id not in self._links:
                self._awaited.add(ingress_id)
            self._renew(ingress_id)

    def _renew(self, ingress_id: str) -> None:
        self._leases[ingress_id] = time.monotonic() + self._lease_s
        if self._next_look is None:
            self._look_in(self._lease_s)

    def _look_in(self, delay_s: float) -> None:
        self._next_look = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        """No other ingress may have a connection here: nobody's word is waited for."""
        self._next_look = None
        self.drop_silent(self._lease_s)
        if self._leases and not self._closed:
            self._look_in(max(0.0, min(self._leases.values()) - time.monotonic()))

    def drop_silent(self, silence_s: float) -> None:
        """Drop ingresses that have said nothing for so long, with their requests."""
        end_s = time.monotonic() + self._lease_s - silence_s
        for gone in [one for one, until_s in self._leases.items() if until_s <= end_s]:
            logger.warning("ingress %s is gone: its requests are dropped", gone)
            del self._leases[gone]
            self._requests.drop_ingress(gone)
            with self._lock:
                self._unsent.pop(gone, None)
                link = self._links.pop(gone, None)
                if link is None and gone in self._awaited:
                    self._dropped.add(gone)
            if link is not None:
                link.close()  # one that was only slow submits again what it waits for

    def close(self) -> None:
        """End all connections behind what has been sent; there will be no others."""
        self._closed = True
        if self._next_look is not None:
            self._next_look.cancel()
        if self._server is not None and self._server.done():
            self._server.result().close()
        with self._lock:
            links = list(self._links.values())
        for link in links:
            link.close()
