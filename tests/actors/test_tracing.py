"""Spans of requests, as a receiver of OTLP over HTTP gets them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from actors.http.errors import Unavailable
from actors.http.request_record import RequestRecord, SequenceRecord
from actors.http.trace_endpoint import trace_endpoint
from actors.http.tracing import RequestTracer, otlp_tracer, phases, traces_url
from actors.messages import GenerateRequest, TokenEvent
from configs.environment import OTLP_ENDPOINT
from configs.schema import WindroseConfig
from tests.actors.http_serving import MODEL, Step, chat_body, ids_of, make_state, serving
from tests.actors.otlp_receiver import Receiver, receiving

CHAT = "/v1/chat/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@pytest.fixture(scope="module")
def tracer(receiver: Receiver) -> Iterator[RequestTracer]:
    one = otlp_tracer(receiver.url, MODEL, "i-1")
    yield one
    one.close()


def after_a_loss(request: GenerateRequest) -> list[Step]:
    """The second token came after a recovery of a second."""
    a, b = ids_of("one two")
    began_s = request.arrival_s - 1.0  # before the request: its span begins with the request
    return [
        TokenEvent(request.request_id, (a,), queue_s=1e-4),
        TokenEvent(request.request_id, (b,), None, "length", recovered=(began_s, time.time())),
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_under_its_clients_trace(
    receiver: Receiver, tracer: RequestTracer, stream: bool
) -> None:
    name = f"traced-{stream}"
    headers = {"X-Request-Id": name, "traceparent": f"00-{TRACE}-{PARENT}-01"}
    began_s = time.time()
    with serving(make_state(after_a_loss, on_end=tracer)) as http:
        answer = http.post(CHAT, json=chat_body(stream=stream), headers=headers)
    ended_s = time.time()
    assert answer.status_code == 200
    tracer.flush()
    root, *below = receiver.of(name)
    assert (root.trace, root.parent, root.name) == (TRACE, PARENT, f"POST {CHAT}")
    assert root.service == "windrose" and not root.failed
    assert began_s <= root.from_s < root.to_s <= ended_s + 0.001
    assert root.attributes["gen_ai.usage.output_tokens"] == 2
    assert root.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert root.attributes["http.response.status_code"] == 200
    assert {span.trace for span in below} == {TRACE}
    spans = {span.name: span for span in below}
    assert len(below) == 4
    queue, prefill = spans["queue"], spans["prefill"]
    decode, recovery = spans["decode"], spans["recovery"]
    assert root.from_s == queue.from_s < queue.to_s == prefill.from_s
    assert prefill.to_s == decode.from_s <= decode.to_s <= root.to_s
    assert recovery.from_s == root.from_s < recovery.to_s <= root.to_s


def test_a_trace_of_ones_own_and_what_is_not_traced(
    receiver: Receiver, tracer: RequestTracer
) -> None:
    def fails(_request: GenerateRequest) -> list[Step]:
        return [Unavailable("nobody serves")]

    with serving(make_state(fails, on_end=tracer)) as http:
        http.post(CHAT, json=chat_body(), headers={"X-Request-Id": "failed"})
        http.get("/health", headers={"X-Request-Id": "probe"})
        unsampled = {"X-Request-Id": "unsampled", "traceparent": f"00-{TRACE}-{PARENT}-00"}
        http.post(CHAT, json=chat_body(), headers=unsampled)
        broken = {"X-Request-Id": "broken", "traceparent": "00-what-ever"}
        http.post(CHAT, json=chat_body(n=2), headers=broken)
    tracer.flush()
    root, queue = receiver.of("failed")
    assert root.failed and root.parent == "" and root.trace != TRACE
    assert (queue.name, queue.from_s, queue.to_s) == ("queue", root.from_s, root.to_s)
    assert len(receiver.of("broken")) >= 2
    seen = {span.attributes.get("windrose.request_id") for span in receiver.spans}
    assert not {"probe", "unsampled"} & seen


def test_phases_of_what_ended_early() -> None:
    never = SequenceRecord(1, 10.0)
    assert list(phases(never, 10.0, 12.0)) == [("queue", 10.0, 12.0)]
    left = SequenceRecord(1, 10.0, first_row_s=10.5, first_token_s=11.0, last_token_s=11.5)
    left.finish_reason = "abort"
    assert list(phases(left, 10.0, 12.0)) == [
        ("queue", 10.0, 10.5),
        ("prefill", 10.5, 11.0),
        ("decode", 11.0, 12.0),
    ]


def test_a_receiver_that_is_gone_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1")  # of its ten seconds of trying
    with receiving() as gone:
        url = gone.url
    tracer = otlp_tracer(url, MODEL, "i-2")
    began_s = time.monotonic()
    tracer(RequestRecord("r", "POST", CHAT, status=200))
    assert time.monotonic() - began_s < 0.5, "a request must not wait for it"
    tracer.close()


def test_where_traces_go() -> None:
    config = WindroseConfig(model="m")
    assert trace_endpoint(config, {}) is None
    assert trace_endpoint(config, {OTLP_ENDPOINT: "http://a:1"}) == "http://a:1"
    given = WindroseConfig(model="m", otlp_endpoint="http://b:2")
    assert trace_endpoint(given, {OTLP_ENDPOINT: "http://a:1"}) == "http://b:2"
    with pytest.raises(ValueError, match=OTLP_ENDPOINT):
        trace_endpoint(config, {OTLP_ENDPOINT: "a:1"})
    with pytest.raises(ValueError, match="otlp_endpoint"):
        WindroseConfig(model="m", otlp_endpoint="b:2")
    for endpoint in ("http://a:1", "http://a:1/", "http://a:1/v1/traces"):
        assert traces_url(endpoint) == "http://a:1/v1/traces"


def test_a_missing_exporter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.http.trace_endpoint._EXPORTER", "opentelemetry.nothing.here")
    with pytest.raises(ValueError, match=r"windrose\[otel\]"):
        trace_endpoint(WindroseConfig(model="m", otlp_endpoint="http://b:2"), {})


def test_who_does_not_trace_imports_nothing_of_it() -> None:
    code = "import sys, actors.http.api, actors.http.trace_endpoint;"
    code += "print([name for name in sys.modules if name.startswith('opentelemetry.sdk.trace')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
