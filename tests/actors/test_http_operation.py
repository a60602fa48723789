"""What operators and tools ask over HTTP: health, models, experts, metrics, OpenAPI's document."""

from __future__ import annotations

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.http.api import create_api
from actors.http.openapi_document import ANSWERS
from tests.actors.http_serving import (
    MODEL,
    FakeSource,
    chat_body,
    ids_of,
    make_state,
    official,
    says,
    serving,
    source_of,
)


def test_operating_routes() -> None:
    state = make_state()
    with serving(state) as http, official(http.base_url) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).created == 1_700_000_000
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-4")
        assert http.get("/version").json() == {"version": "9.9.9"}
        assert http.get("/v1/experts").json()["placement_version"] == 3
        assert http.get("/").json()["docs"] == "/docs"
        assert http.get("/health").status_code == 200
        assert http.head("/health").status_code == 200
        source_of(state).is_ready = False
        assert http.get("/health").status_code == 503
        assert http.get("/health").json()["error"]["code"] == "service_unavailable"


def test_metrics_measure_requests() -> None:
    state = make_state(says("three word answer", per_event=2))
    num_tokens = len(ids_of("three word answer")) + 1
    with serving(state) as http:
        http.post("/v1/chat/completions", json=chat_body(n=2))
        answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.text))
    assert len({family.name for family in families}) == len(families)
    values = {
        (sample.name, sample.labels.get("finished_reason")): sample.value
        for family in families
        for sample in family.samples
        if "le" not in sample.labels
    }
    prompt = len(source_of(state).requests[0].prompt_token_ids)
    assert values["windrose_num_requests_running", None] == 2.0
    assert values["windrose_time_to_first_token_seconds_count", None] == 2
    assert values["windrose_inter_token_latency_seconds_count", None] == 2 * (num_tokens - 2)
    assert values["windrose_e2e_request_latency_seconds_count", None] == 2
    assert values["windrose_generation_tokens_total", None] == 2 * num_tokens
    assert values["windrose_prompt_tokens_total", None] == 2 * prompt
    assert values["windrose_request_success_total", "stop"] == 2
    assert values["windrose_e2e_request_latency_seconds_sum", None] > 0


def test_what_goes_wrong_inside_is_not_told() -> None:
    class Silent(FakeSource):
        async def experts(self) -> dict[str, object]:
            raise RuntimeError("not meant for clients")

    with serving(make_state(source=Silent(says("x")))) as http:
        answer = http.get("/v1/experts")
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "internal server error"


def test_openapi_shows_both_bodies() -> None:
    with serving(make_state()) as http:
        document = http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for path, name in (("chat/completions", "ChatRequest"), ("completions", "CompletionRequest")):
        body = document["paths"][f"/v1/{path}"]["post"]["requestBody"]
        reference = body["content"]["application/json"]["schema"]["$ref"]
        assert reference == f"#/components/schemas/{name}"
        assert "temperature" in schemas[name]["properties"]
    assert schemas["Message"]["properties"]["role"]["enum"]


def test_the_document_tells_every_answer_of_every_route() -> None:
    app = create_api(make_state())
    document = app.openapi()
    operations = {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    changes = {key for key in operations if key[0] == "post" and "/experts/" in key[1]}
    assert operations.keys() == ANSWERS.keys() | changes
    assert len(changes) == 5
    error = {"$ref": "#/components/schemas/Error"}
    for (method, path), operation in operations.items():
        responses = operation["responses"]
        assert "200" in responses and "422" not in responses
        is_guarded = path.startswith(("/v1/", "/classify"))
        assert ("401" in responses) == is_guarded == ("security" in operation)
        assert ("403" in responses) == ((method, path) in changes)
        for status, response in responses.items():
            if status != "200":
                assert response["content"]["application/json"]["schema"] == error
    for path in ("/v1/chat/completions", "/v1/completions"):
        answers = document["paths"][path]["post"]["responses"]
        assert {"400", "404", "408", "413", "429", "503", "504"} <= answers.keys()
        assert "Retry-After" in answers["429"]["headers"]
    assert "HTTPValidationError" not in document["components"]["schemas"]
