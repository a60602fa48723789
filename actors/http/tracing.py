"""OpenTelemetry spans of requests, made of a request's record when it has ended.

Nothing is traced while a request runs, so without an exporter tracing costs nothing, and with one
it costs a request's time only at its end. Only who traces imports this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from actors.http.request_record import RequestRecord, SequenceRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_DELAY_MS = 1000  # spans wait so long for others to go with

Phase = tuple[str, float, float]  # a span's name, and from when to when


class RequestTracer:
    """Call it with the record of each request that has ended."""

    def __init__(self, exporter: SpanExporter, model_name: str, instance: str) -> None:
        """`instance`: a name for this process."""
        own = Resource.create(
            {
                "service.name": "windrose",
                "service.version": version("windrose"),
                "service.instance.id": instance,
            }
        )
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
        resource = own.merge(OTELResourceDetector().detect())
        self._model_name = model_name
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=_DELAY_MS)
        )
        self._tracer = self._provider.get_tracer("windrose")
        self._propagator = TraceContextTextMapPropagator()

    def __call__(self, record: RequestRecord) -> None:
        """Make the spans of a request; one that only looks at the server has none."""
        if record.method != "POST":
            return
        sent = {"traceparent": record.traceparent, "tracestate": record.tracestate}
        carrier = {name: value for name, value in sent.items() if value is not None}
        end_s = record.at_s + record.total_s
        root = self._tracer.start_span(
            f"{record.method} {record.path}",
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            self._attributes(record),
            start_time=_ns(record.at_s),
        )
        if record.failed:
            error = record.error
            root.set_status(Status(StatusCode.ERROR, None if error is None else error.message))
        below = set_span_in_context(root)
        for index, sequence in enumerate(record.sequences):
            for name, from_s, to_s in phases(sequence, record.at_s, end_s):
                span = self._tracer.start_span(
                    name,
                    below,
                    attributes={"windrose.choice": index},
                    start_time=_ns(from_s),
                )
                span.end(_ns(to_s))
        root.end(_ns(end_s))

    def _attributes(self, record: RequestRecord) -> dict[str, str | int | list[str]]:
        """OpenTelemetry's own names where it has one."""
        attributes: dict[str, str | int | list[str]] = {
            "http.request.method": record.method,
            "url.path": record.path,
            "http.response.status_code": record.status,
            "windrose.request_id": record.request_id,
            "gen_ai.request.model": self._model_name,
        }
        if record.sequences:
            reasons: list[str] = [one.finish_reason or "error" for one in record.sequences]
            attributes |= {
                "gen_ai.usage.input_tokens": record.prompt_tokens,
                "gen_ai.usage.output_tokens": sum(o.completion_tokens for o in record.sequences),
                "gen_ai.response.finish_reasons": reasons,
            }
        return attributes

    def flush(self) -> None:
        """Send what waits. Any thread; where nobody takes it, it tries for some ten seconds."""
        self._provider.force_flush()

    def close(self) -> None:
        """Send what waits, and end."""
        self._provider.shutdown()


def phases(sequence: SequenceRecord, at_s: float, end_s: float) -> Iterator[Phase]:
    """What a sequence of a request that was here from `at_s` to `end_s` did, and when.

    Queue, prefill and decode follow each other; a recovery lies in one of them, or over two. Of one
    that ended early the phase it was in ends with the request.
    """
    row_s, first_s = sequence.first_row_s, sequence.first_token_s
    if not first_s:
        yield "queue", at_s, end_s  # it may have had rows: only its first token would tell
    elif row_s:
        yield "queue", at_s, row_s
        yield "prefill", row_s, first_s
    if first_s:
        ended = sequence.finish_reason in ("stop", "length")
        yield "decode", first_s, sequence.last_token_s if ended else end_s
    for from_s, to_s in sequence.recoveries:
        yield "recovery", max(from_s, at_s), max(from_s, at_s, to_s)


def _ns(unix_s: float) -> int:
    return int(unix_s * 1e9)


def otlp_tracer(endpoint: str, model_name: str, instance: str) -> RequestTracer:
    """One that sends to `endpoint` by OTLP over HTTP. Further OTEL_ variables hold as they do."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return RequestTracer(OTLPSpanExporter(endpoint=traces_url(endpoint)), model_name, instance)


def traces_url(endpoint: str) -> str:
    """Where traces go below an endpoint for all signals, as OpenTelemetry has it."""
    base = endpoint.rstrip("/")
    return base if base.endswith("/v1/traces") else f"{base}/v1/traces"
