"""The end of every request: its line in the log, its count where it was refused, its trace."""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from time import perf_counter
from typing import cast

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.http.request_ids import REQUEST_ID_HEADER
from actors.http.request_record import RequestRecord
from actors.log_lines import about
from configs.process_settings import LogFormat

# Machines ask for these all the time.
_PROBES = ("/health", "/metrics", "/version")
_LONGEST_PATH = 200

logger = logging.getLogger(__name__)

OnEnd = Callable[[RequestRecord], None]


class RequestRecords:
    """Middleware: keeps a record of each request while it is served and hands it over at its end.

    Goes below `RequestIds`.
    """

    def __init__(self, app: ASGIApp, *, on_end: OnEnd) -> None:
        self._app = app
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord(
            request_id=headers.get(REQUEST_ID_HEADER, ""),
            method=scope["method"],
            path=ascii(scope["path"][:_LONGEST_PATH])[1:-1],  # nothing a terminal would obey
            traceparent=headers.get("traceparent"),
            tracestate=headers.get("tracestate"),
        )
        scope.setdefault("state", {})["record"] = record

        async def noting_status(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = int(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noting_status)
        finally:
            record.total_s = perf_counter() - record.arrived_s
            self._on_end(record)


def record_of(request: Request) -> RequestRecord:
    """What `RequestRecords` keeps of this request."""
    return cast(RequestRecord, request.state.record)


def request_level(log_format: LogFormat) -> int:
    """At which level a request that went well is written.

    JSON is for machines, which count requests. Text is for who looks whether anything happens that
    should not: hundreds of lines a second would hide it, and `windrose top` shows requests better.
    """
    return logging.INFO if log_format == "json" else logging.DEBUG


def write_line(record: RequestRecord, level: int) -> None:
    """Log a request that has ended; `level` where all went well or the client is to blame."""
    if record.path.endswith(_PROBES) and record.status != HTTPStatus.INTERNAL_SERVER_ERROR:
        level = logging.DEBUG
    elif record.failed:
        level = logging.WARNING
    if logger.isEnabledFor(level):
        told = about("request", **record.fields())
        logger.log(level, "%s %s %d", record.method, record.path, record.status, extra=told)
