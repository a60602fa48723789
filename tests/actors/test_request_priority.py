"""`priority` on its way from a client's body to the scheduler's order."""

from __future__ import annotations

from typing import Any

import pytest

from actors.messages import GenerateRequest
from tests.actors.http_serving import MODEL, chat_body, make_state, official, serving, source_of

COMPLETION = {"model": MODEL, "prompt": ["Hi", "Ho"], "max_tokens": 3}


def received(path: str, body: dict[str, Any]) -> list[GenerateRequest]:
    """What reaches the pipelines."""
    state = make_state()
    with serving(state) as http:
        http.post(f"/v1/{path}", json=body).raise_for_status()
    return source_of(state).requests


@pytest.mark.parametrize("given", [{}, {"priority": None}])
def test_it_is_zero_where_none_is_given(given: dict[str, Any]) -> None:
    assert [one.priority for one in received("chat/completions", chat_body(**given))] == [0]
    assert [one.priority for one in received("completions", COMPLETION | given)] == [0, 0]


@pytest.mark.parametrize("priority", [-(2**63), -1, 7, 2**63 - 1])
def test_every_choice_of_a_request_has_it(priority: int) -> None:
    body = chat_body(priority=priority, n=3)
    assert [one.priority for one in received("chat/completions", body)] == [priority] * 3
    body = COMPLETION | {"priority": priority}
    assert [one.priority for one in received("completions", body)] == [priority] * 2


def test_choices_of_a_request_arrived_together() -> None:
    first, second = received("completions", COMPLETION)
    assert first.arrival_s == second.arrival_s > 1.7e9


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_what_is_no_integer_is_refused_by_name(path: str) -> None:
    body = chat_body() if path.startswith("chat") else dict(COMPLETION)
    with serving(make_state()) as http:
        wrong: list[Any] = [0.5, "0", True, {}]
        for priority in wrong:
            answer = http.post(f"/v1/{path}", json=body | {"priority": priority})
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert error["param"] == "priority"
            assert "priority" in error["message"] and "integer" in error["message"]


def test_the_official_client_can_send_it() -> None:
    state = make_state()
    with serving(state) as http:
        official(http.base_url).chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            extra_body={"priority": -3},
        )
    (request,) = source_of(state).requests
    assert request.priority == -3
