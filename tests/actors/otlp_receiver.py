"""A receiver of traces: a real HTTP server that decodes what OTLP exporters send."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Span:
    """As it arrived; ids in hex, times in Unix seconds."""

    name: str
    trace: str
    id: str
    parent: str
    from_s: float
    to_s: float
    failed: bool
    attributes: dict[str, Any]
    service: str


class Receiver(ThreadingHTTPServer):
    """`spans` are all that came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self._came = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def take(self, body: bytes) -> None:
        message = ExportTraceServiceRequest.FromString(body)
        with self._came:
            for one in message.resource_spans:
                (service,) = (
                    pair.value.string_value
                    for pair in one.resource.attributes
                    if pair.key == "service.name"
                )
                self.spans += [_span(span, service) for g in one.scope_spans for span in g.spans]
            self._came.notify_all()

    def of(self, request_id: str, timeout_s: float = 15.0) -> list[Span]:
        """Waits for the trace of the one request that has this id; its root comes first."""
        with self._came:
            assert self._came.wait_for(lambda: self._roots(request_id), timeout_s), self.spans
            (root,) = self._roots(request_id)
            below = [span for span in self.spans if span.parent == root.id]
        return [root, *sorted(below, key=lambda span: (span.from_s, span.to_s))]

    def _roots(self, request_id: str) -> list[Span]:
        named = "windrose.request_id"
        return [span for span in self.spans if span.attributes.get(named) == request_id]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        assert self.headers["content-type"] == "application/x-protobuf"
        self.server.take(body)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(ExportTraceServiceResponse().SerializeToString())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def receiving() -> Iterator[Receiver]:
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join(10)


def _span(span: Any, service: str) -> Span:
    return Span(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano / 1e9,
        span.end_time_unix_nano / 1e9,
        span.status.code == 2,
        {pair.key: _value(pair.value) for pair in span.attributes},
        service,
    )


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
