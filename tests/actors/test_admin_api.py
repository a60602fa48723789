from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from actors.http.admin_api import BODIES
from actors.http.api import create_api
from actors.http.errors import ApiError, BadRequest, Conflict, Unavailable
from actors.http.waiting_line import LineLimits, WaitingLine
from actors.placement.placement_messages import (
    ChangeOutcome,
    ChangeReport,
    Drop,
    Move,
    PlacementChange,
    Rebalance,
    Replicate,
    Scale,
)
from tests.actors.http_serving import FakeSource, make_state, says, serving, source_of

REPORT = ChangeReport(
    pipeline="p0",
    placement_version=8,
    applied=True,
    reason="expert 3 is on rank 2 too",
    added=((0, 3, 2), (1, 3, 2)),
    dropped=((0, 3, 1),),
    took_s=1.5,
)
SHOWN = {
    "pipeline": "p0",
    "placement_version": 8,
    "applied": True,
    "reason": "expert 3 is on rank 2 too",
    "added": [{"layer": 0, "expert": 3, "rank": 2}, {"layer": 1, "expert": 3, "rank": 2}],
    "dropped": [{"layer": 0, "expert": 3, "rank": 1}],
    "took_s": 1.5,
}

ASKED: list[tuple[str, dict[str, Any], PlacementChange]] = [
    ("replicate", {"expert": 3}, Replicate(3)),
    ("replicate", {"expert": 3, "layer": None, "to": None}, Replicate(3)),
    ("replicate", {"expert": 0, "layer": 0, "to": 0}, Replicate(0, 0, 0)),
    ("move", {"expert": 3}, Move(3)),
    ("move", {"expert": 3, "layer": 1, "from": 4, "to": 5}, Move(3, 1, source=4, to=5)),
    ("drop", {"expert": 3}, Drop(3)),
    ("drop", {"expert": 3, "layer": 1, "rank": 2}, Drop(3, 1, 2)),
    ("rebalance", {}, Rebalance()),
    ("rebalance", {"dry_run": None}, Rebalance(False)),
    ("rebalance", {"dry_run": True}, Rebalance(True)),
    ("scale", {"expert_actors": 1}, Scale(1)),
]

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("replicate", {}, "expert"),
    ("replicate", {"expert": None}, "expert"),
    ("replicate", {"expert": "3"}, "expert"),
    ("replicate", {"expert": True}, "expert"),
    ("replicate", {"expert": 3.0}, "expert"),
    ("replicate", {"expert": -1}, "expert"),
    ("replicate", {"expert": [3]}, "expert"),
    ("replicate", {"expert": 3, "layer": -1}, "layer"),
    ("replicate", {"expert": 3, "layer": False}, "layer"),
    ("replicate", {"expert": 3, "to": "2"}, "to"),
    ("move", {"layer": 0}, "expert"),
    ("move", {"expert": 3, "from": -1}, "from"),
    ("move", {"expert": 3, "from": True}, "from"),
    ("move", {"expert": 3, "to": 1.5}, "to"),
    ("drop", {"expert": 3, "layer": "0"}, "layer"),
    ("drop", {"expert": 3, "rank": -2}, "rank"),
    ("rebalance", {"dry_run": 1}, "dry_run"),
    ("rebalance", {"dry_run": "true"}, "dry_run"),
    ("scale", {}, "expert_actors"),
    ("scale", {"expert_actors": 0}, "expert_actors"),
    ("scale", {"expert_actors": True}, "expert_actors"),
    ("scale", {"expert_actors": "2"}, "expert_actors"),
]

UNKNOWN: list[tuple[str, dict[str, Any], str]] = [
    ("replicate", {"expert": 3, "rank": 2}, "rank"),
    ("move", {"expert": 3, "source": 1}, "source"),  # "from" over HTTP
    ("drop", {"expert": 3, "from": 2}, "from"),
    ("rebalance", {"expert": 3}, "expert"),
    ("rebalance", {"tool_choice": "none"}, "tool_choice"),  # a field of the completions only
    ("scale", {"expert_actors": 2, "attention_actors": 1}, "attention_actors"),
]


def post(http: httpx.Client, name: str, body: object) -> httpx.Response:
    return http.post(f"/v1/experts/{name}", json=body)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


def test_every_change_reaches_the_source() -> None:
    state = make_state()
    with serving(state) as http:
        for name, body, _ in ASKED:
            answer = post(http, name, body)
            shown: dict[str, list[object]] = {"pipelines": [], "refused": []}
            assert (answer.status_code, answer.json()) == (200, shown), (name, body)
    assert source_of(state).changes == [change for _, _, change in ASKED]
    assert {name for name, _, _ in ASKED} == BODIES.keys()


def test_each_pipeline_s_report_is_answered() -> None:
    state = make_state()
    idle = ChangeReport("p1", 7, False, "nothing to do", (), (), 0.0)
    source_of(state).change_answer = ChangeOutcome((REPORT, idle), ("rank 2 is being replaced",))
    with serving(state) as http:
        answer = post(http, "replicate", {"expert": 3})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "pipelines": [
            SHOWN,
            {
                "pipeline": "p1",
                "placement_version": 7,
                "applied": False,
                "reason": "nothing to do",
                "added": [],
                "dropped": [],
                "took_s": 0.0,
            },
        ],
        "refused": ["rank 2 is being replaced"],
    }


@pytest.mark.parametrize("content", [b"", b" \n", b"{}"])
def test_a_rebalance_needs_no_body(content: bytes) -> None:
    state = make_state()
    with serving(state) as http:
        assert http.post("/v1/experts/rebalance", content=content).status_code == 200
        # The others' required fields are missed, not guessed.
        empty = http.post("/v1/experts/replicate", content=content)
    assert (empty.status_code, source_of(state).changes) == (400, [Rebalance()])


def test_what_is_wrong_is_named_before_the_source_hears() -> None:
    state = make_state()
    with serving(state) as http:
        for name, body, param in WRONG + UNKNOWN:
            answer = post(http, name, body)
            error = error_of(answer)
            assert (answer.status_code, error["param"]) == (400, param), (name, body)
            assert error["type"] == "invalid_request_error"
            assert param in error["message"]
            unknown = (name, body, param) in UNKNOWN
            assert error["code"] == ("unknown_parameter" if unknown else None), (name, body)
    assert source_of(state).changes == []


def test_what_is_no_json_object_is_refused() -> None:
    state = make_state()
    with serving(state) as http:
        for name in BODIES:
            for content in (b"{", b"\xff", b"[]", b"null", b"3", b"[" * 200_000):
                answer = http.post(f"/v1/experts/{name}", content=content)
                assert (answer.status_code, error_of(answer)["param"]) == (400, None), content[:9]
        too_large = http.post("/v1/experts/rebalance", content=b" " * (4 * 2**20 + 1))
    assert too_large.status_code == 413
    assert source_of(state).changes == []


@pytest.mark.parametrize(
    ("refusal", "status", "kind", "code"),
    [
        (BadRequest("there is no expert 9", param="expert"), 400, "invalid_request_error", None),
        (Conflict("another change is under way"), 409, "conflict_error", "conflict"),
        (Unavailable("no pipeline serves"), 503, "server_error", "service_unavailable"),
    ],
)
def test_the_source_s_refusals_are_answers(
    refusal: ApiError, status: int, kind: str, code: str | None
) -> None:
    state = make_state()
    source_of(state).change_answer = refusal
    with serving(state) as http:
        for name, body, _ in ASKED:
            answer = post(http, name, body)
            assert answer.status_code == status
            assert error_of(answer) == {
                "message": refusal.message,
                "type": kind,
                "param": refusal.param,
                "code": code,
            }


def test_a_failure_tells_clients_nothing_of_the_inside() -> None:
    state = make_state()
    source_of(state).change_answer = RuntimeError("secret detail")
    with serving(state) as http:
        answer = post(http, "rebalance", {})
    assert (answer.status_code, error_of(answer)["message"]) == (500, "internal server error")


def test_draining_refuses_and_a_full_server_does_not() -> None:
    state = make_state(line=WaitingLine(LineLimits(1)))
    with serving(state) as http:
        state.line.sequences = 1
        assert post(http, "scale", {"expert_actors": 2}).status_code == 200
        state.line.sequences = 0
        state.draining = True
        for name, body, _ in ASKED:
            answer = post(http, name, body)
            assert (answer.status_code, answer.headers["connection"]) == (503, "close")
            assert answer.headers["retry-after"] == "5"
            assert error_of(answer)["message"] == "the server is shutting down"
    assert source_of(state).changes == [Scale(2)]


def test_only_post_changes() -> None:
    state = make_state()
    with serving(state) as http:
        for name in BODIES:
            answer = http.get(f"/v1/experts/{name}")
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert post(http, "shuffle", {}).status_code == 404
        assert http.get("/v1/experts").json()["placement_version"] == 3
    assert source_of(state).changes == []


def test_a_change_that_has_begun_goes_on_without_its_client() -> None:
    async def scenario() -> None:
        begun, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        class Slow(FakeSource):
            async def change(self, change: PlacementChange) -> ChangeOutcome:
                begun.set()
                await go_on.wait()
                done.set()
                return ChangeOutcome(())

        app = create_api(make_state(source=Slow(says("x"))))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            asking = asyncio.create_task(client.post("/v1/experts/rebalance"))
            await begun.wait()
            asking.cancel()  # as servers do to a route whose client has gone
            await asyncio.wait([asking])
            assert asking.cancelled()
            go_on.set()
            await asyncio.wait_for(done.wait(), 5)

    asyncio.run(scenario())


def test_openapi_shows_the_bodies() -> None:
    with serving(make_state()) as http:
        document = http.get("/openapi.json").json()
    fields = {
        "replicate": ({"expert", "layer", "to"}, ["expert"]),
        "move": ({"expert", "layer", "from", "to"}, ["expert"]),
        "drop": ({"expert", "layer", "rank"}, ["expert"]),
        "rebalance": ({"dry_run"}, None),
        "scale": ({"expert_actors"}, ["expert_actors"]),
    }
    for name, (names, required) in fields.items():
        route = document["paths"][f"/v1/experts/{name}"]["post"]
        body = route["requestBody"]
        schema = body["content"]["application/json"]["schema"]
        assert schema["properties"].keys() == names
        assert schema.get("required") == required
        assert schema["additionalProperties"] is False
        assert body["required"] is (required is not None)
        assert {"200", "400", "409", "503"} <= route["responses"].keys()
    assert "$ref" not in json.dumps(document["paths"]["/v1/experts/move"]["post"]["requestBody"])
