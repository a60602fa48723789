"""The connection between an ingress and an attention actor, as both see it.

TCP, one for each pair, opened by the ingress. A message is its length (4 bytes, big-endian), its
kind (1 byte) and a JSON body. Calls go through Ray; tokens do not, since an item of one of Ray's
streaming generators came about 2 ms later on two cores.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

from pydantic import ConfigDict, TypeAdapter

from actors.messages import GenerateRequest, StepEvents
from actors.tcp_silence import end_on_silence

LONGEST_BYTES = 256 * 2**20  # of a body: what says that it is longer is no message
_LENGTH_BYTES = 4

_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")
_requests: TypeAdapter[list[GenerateRequest]] = TypeAdapter(list[GenerateRequest], config=_CONFIG)
_events: TypeAdapter[StepEvents] = TypeAdapter(StepEvents, config=_CONFIG)
_ids: TypeAdapter[list[str]] = TypeAdapter(list[str])

logger = logging.getLogger(__name__)


class Kind(IntEnum):
    """What a message says. Bodies: see below; HELLO's is the secret, and then the ingress's id."""

    HELLO = 1  # ingress: the first of all
    SUBMIT = 2  # ingress: requests
    ABORT = 3  # ingress: ids of requests whose client is gone
    ALIVE = 4  # ingress, now and then: nothing
    EVENTS = 5  # actor: what one step made for this ingress
    REFUSED = 6  # actor: ids of requests it has not taken


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """Where an attention actor listens, and what an ingress says to be heard."""

    host: str
    port: int
    secret: bytes


OnMessage = Callable[["Link", Kind, bytes], None]


class Link(asyncio.Protocol):
    """One end of a connection. Lives on an event loop; any thread may send.

    What is sent goes to the kernel at once, in the sender's thread: a loop in another thread would
    first have to get the interpreter, which a step's thread gives up only in the next kernel.
    """

    def __init__(self, on_message: OnMessage, longest_bytes: int = LONGEST_BYTES) -> None:
        """`on_message` may raise ValueError: what is at the other end is then none of ours."""
        self.on_message = on_message
        self.longest_bytes = longest_bytes
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._event_loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None  # under the lock; as is:
        self._num_late = 0  # pieces on their way to the transport
        self.ended: asyncio.Future[None] = self._event_loop.create_future()

    def send(self, kind: Kind, body: bytes = b"") -> None:
        """Send one message; nothing once the connection has ended. Any thread."""
        message = len(body).to_bytes(_LENGTH_BYTES, "big") + bytes((kind,)) + body
        with self._lock:
            if self._socket is None or self._transport is None:
                return
            sent = 0
            if not self._num_late and not self._transport.get_write_buffer_size():
                try:
                    sent = self._socket.send(message)
                except BlockingIOError:
                    pass
                except OSError:
                    return  # the loop notices as well
            if sent < len(message):  # the other end is slow: the loop does the rest
                self._num_late += 1
                self._event_loop.call_soon_threadsafe(self._send_late, message[sent:])

    def _send_late(self, piece: bytes) -> None:
        with self._lock:
            self._num_late -= 1
            if self._transport is not None:
                self._transport.write(piece)

    def close(self) -> None:
        """End the connection behind what has been sent."""
        with self._lock:
            if self._num_late:
                self._event_loop.call_soon(self.close)
            elif self._transport is not None:
                self._transport.close()

    def abort(self) -> None:
        """End the connection at once, whether the other end can be reached or not."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop. Has the kernel notice a machine that is gone."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        end: socket.socket = transport.get_extra_info("socket")
        end_on_silence(end)
        self._socket = socket.socket(fileno=os.dup(end.fileno()))

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        received = self._received
        received += data
        head = _LENGTH_BYTES + 1
        start = 0
        while len(received) - start >= head:
            length = int.from_bytes(received[start : start + _LENGTH_BYTES], "big")
            end = start + head + length
            try:
                if length > self.longest_bytes:
                    raise ValueError(f"a message of {length} bytes")
                if end > len(received):
                    break
                kind = Kind(received[start + _LENGTH_BYTES])
                self.on_message(self, kind, bytes(received[start + head : end]))
            except ValueError as error:
                logger.warning("a connection is closed: it brought what is no message: %s", error)
                self.abort()
                return
            start = end
        del received[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()  # while it is open, so is the connection
                self._socket = None
        if not self.ended.done():
            self.ended.set_result(None)


def pack_requests(requests: list[GenerateRequest]) -> bytes:
    """The body of SUBMIT."""
    return _requests.dump_json(requests, exclude_defaults=True)


def unpack_requests(body: bytes) -> list[GenerateRequest]:
    """Raises ValueError."""
    return _requests.validate_json(body)


def pack_events(events: StepEvents) -> bytes:
    """The body of EVENTS."""
    return _events.dump_json(events, exclude_defaults=True)


def unpack_events(body: bytes) -> StepEvents:
    """Raises ValueError."""
    return _events.validate_json(body)


def pack_ids(ids: list[str]) -> bytes:
    """The body of ABORT and REFUSED."""
    return _ids.dump_json(ids)


def unpack_ids(body: bytes) -> list[str]:
    """Raises ValueError."""
    return _ids.validate_json(body)
