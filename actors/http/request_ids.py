"""X-Request-Id: what names a request for its client, in the log, in traces and in the engine.

Ray Serve appends the header to every answer by itself, whatever a client has sent in it, and ends
with a 500 where that is not UTF-8. `serve_middlewares` puts ours around it.
"""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.http.transport import OwnDisconnects

REQUEST_ID_HEADER = "x-request-id"
_USABLE = re.compile(r"[!-~]{1,128}")  # one word of printable ASCII: what a line of a log can bear


class RequestIds:
    """Middleware: gives every request an id, its client's own if that is usable.

    Below it the request has one X-Request-Id, that one. With `answers` the response has it too.
    """

    def __init__(self, app: ASGIApp, *, answers: bool = True) -> None:
        self._app = app
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        request_id = usable(headers.getlist(REQUEST_ID_HEADER))
        headers[REQUEST_ID_HEADER] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id if self._answers else send)


def usable(given: list[str]) -> str:
    """The one id that was given, or a new one where there is none, several, or a strange one."""
    if len(given) == 1 and _USABLE.fullmatch(given[0]):
        return given[0]
    return uuid.uuid4().hex


def serve_middlewares() -> list[Middleware]:
    """What RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH asks for: these go around Serve's own."""
    return [Middleware(RequestIds), Middleware(OwnDisconnects)]
