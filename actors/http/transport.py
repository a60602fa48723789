"""HTTP below the routes: reading bodies, streaming events, noticing that a client has gone."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.http.errors import ApiError, BodyTimeout, BodyTooLarge, InternalError

# A client that is still sending when the connection closes may never see the answer. So a body
# that is too large is read to its end, and dropped, unless it is absurd.
MAX_DISCARDED_BYTES = 64 * 2**20
CLIENT_GONE_STATUS = 499  # nobody reads it; access logs show it

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


async def read_body(request: Request, max_bytes: int, timeout_s: float | None = None) -> bytes:
    """The whole body, never holding more than `max_bytes` and one network read.

    Raises BodyTooLarge, at once where the client waits for leave to send, BodyTimeout where it
    is not there in time, and ClientDisconnect.
    """
    too_large = BodyTooLarge(
        f"the request body is over the limit of {max_bytes} bytes (--max-request-bytes)"
    )
    most_read = max(max_bytes, MAX_DISCARDED_BYTES)
    declared = request.headers.get("content-length", "")
    length = int(declared) if declared.isdecimal() else 0
    if length > most_read or (length > max_bytes and "expect" in request.headers):
        raise too_large
    body = bytearray()
    received = 0
    try:
        async with asyncio.timeout(timeout_s), aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                received += len(chunk)
                if received <= max_bytes:
                    body += chunk
                elif received > most_read:
                    break
                else:
                    body.clear()
    except TimeoutError as error:
        raise BodyTimeout(
            f"the request body was not there within {timeout_s:g} s (--body-timeout)"
        ) from error
    if received > max_bytes:
        raise too_large
    return bytes(body)


class OwnDisconnects:
    """Middleware around Serve's: leaves what a client sends, its leaving included, to the app.

    Serve would read on behalf of it, ahead of the app: a body of any size into memory, and one
    task more for each request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on."""
        if scope["type"] == "http":
            MutableHeaders(scope=scope)["x-request-disconnect-disabled"] = "?1"
        await self._app(scope, receive, send)


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled, and has ended, when the client goes away.

    `receive` must have delivered the whole body. Raises ClientDisconnect.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def as_api_error(error: Exception) -> ApiError:
    """The error a client may see for `error`; what is not meant for clients goes to the log."""
    if isinstance(error, ApiError):
        return error
    logger.error("a request failed", exc_info=error)
    return InternalError("internal server error")


def error_response(error: ApiError) -> Response:
    """In OpenAI's shape. ASCII only, since the message may quote what is not Unicode."""
    return Response(
        json.dumps(error.body()),
        status_code=error.status,
        headers=error.headers(),
        media_type="application/json",
    )


class EventStream(Response):
    """Server-sent events, each sent when it is made.

    An error before the first event is answered with its own status; a later one becomes the last
    event, without [DONE]. `on_error` hears of both. A client that leaves closes `events`.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        on_error: Callable[[ApiError], None],
        late_headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """`late_headers` are asked for when the answer begins."""
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._on_error = on_error
        self._late_headers = late_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it all."""
        try:
            failed = await unless_disconnected(receive, self._send_events(send))
        except ClientDisconnect:
            return
        if failed is not None:
            refusal = error_response(failed)
            refusal.headers.update(self._late_headers())
            await refusal(scope, receive, send)

    async def _send_events(self, send: Send) -> ApiError | None:
        """Sends all events; returns the error if there was one before the first."""
        started = False
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    if not started:
                        started = True
                        await send(self._start())
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        except Exception as error:
            shown = as_api_error(error)
            self._on_error(shown)
            if not started:
                return shown
            event = b"data: " + json.dumps(shown.body()).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return None

    def _start(self) -> Message:
        self.headers.update(self._late_headers())
        return {
            "type": "http.response.start",
            "status": HTTPStatus.OK,
            "headers": self.raw_headers,
        }
