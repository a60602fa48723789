from __future__ import annotations

import hmac
import logging
from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import actors.http.doors
from actors.http.admin_api import BODIES
from actors.http.doors import ANYBODY, Doors, KeyDigests, digest, is_foreign, is_loopback
from actors.http.errors import ApiError, Forbidden, Unauthorized
from tests.actors.http_serving import chat_body, make_state, serving, source_of

KEYS = KeyDigests(api=(digest("sk-1"), digest("sk-2")), admin=(digest("root"),))
CHANGES = [f"/v1/experts/{name}" for name in BODIES]
OPEN = ["/health", "/version", "/metrics", "/", "/docs", "/openapi.json"]


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True), ("127.8.9.10", True), ("localhost", True), ("::1", True),
        ("[::1]", True), ("0.0.0.0", False), ("::", False), ("10.0.0.7", False),
        ("example.org", False), ("localhost.example.org", False), ("", False), (None, False),
    ],
)  # fmt: skip
def test_is_loopback(host: str | None, inside: bool) -> None:
    assert is_loopback(host) is inside


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic sk-1", "sk-1", "Bearersk-1"]
)
def test_what_is_no_key_opens_nothing(header: str | None) -> None:
    for ask in (Doors(KEYS).let_in, Doors(KEYS).let_change):
        with pytest.raises(Unauthorized):
            ask(header)


@given(st.text(max_size=20))
def test_only_whole_keys_open(text: str) -> None:
    known = {"sk-1", "sk-2", "root"}
    try:
        Doors(KEYS).let_in(f"Bearer {text}")
        assert text.strip() in known
    except Unauthorized as error:
        assert text.strip() not in known
        assert len(text) < 8 or text not in error.message


def test_callers_are_told_apart_and_not_by_their_keys() -> None:
    doors = Doors(KEYS)
    sent = ("Bearer sk-1 ", "bearer  sk-1", "BEARER sk-2", "Bearer root")
    callers = [doors.let_in(header) for header in sent]
    assert callers[0] == callers[1]
    assert len(set(callers)) == 3
    assert not any(key in caller for key in ("sk-1", "sk-2", "root") for caller in callers)
    assert Doors().let_in(None) == Doors().let_in("Bearer whatever") == ANYBODY
    assert Doors(KeyDigests(admin=KEYS.admin)).let_in(None) == ANYBODY


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(actors.http.doors, "hmac", Watched)
    for key in ("sk-1", "nonsense", "root"):
        compared.clear()
        with suppress(Unauthorized):
            Doors(KEYS).let_in(f"Bearer {key}")
        assert compared == [(digest(key), known) for known in (*KEYS.api, *KEYS.admin)]


@pytest.mark.parametrize(
    ("api", "admin", "beyond", "key", "refusal"),
    [
        (False, False, False, None, None),
        (False, False, True, None, Forbidden),
        (True, False, False, "sk-1", None),
        (True, False, False, None, Unauthorized),
        (True, False, True, None, Unauthorized),
        (True, False, True, "sk-1", Forbidden),
        (False, True, False, None, Unauthorized),
        (False, True, True, "root", None),
        (True, True, True, "root", None),
        (True, True, False, "sk-1", Forbidden),
        (True, True, False, "other", Unauthorized),
    ],
)
def test_who_may_change_placement(
    api: bool, admin: bool, beyond: bool, key: str | None, refusal: type[ApiError] | None
) -> None:
    keys = KeyDigests(KEYS.api if api else (), KEYS.admin if admin else ())
    state = make_state(doors=Doors(keys, beyond))
    with serving(state) as http:
        answers = [http.post(path, json=_body(path), headers=bearer(key)) for path in CHANGES]
    for answer in answers:
        assert answer.status_code == (200 if refusal is None else refusal.status)
        if refusal is not None:
            error = error_of(answer)
            assert key is None or key not in error["message"]
            if refusal is Forbidden and not admin:
                assert "--admin-api-key" in error["message"]
    assert len(source_of(state).changes) == (len(CHANGES) if refusal is None else 0)


def _body(path: str) -> dict[str, int]:
    name = path.rpartition("/")[2]
    if name == "scale":
        return {"expert_actors": 2}
    return {} if name == "rebalance" else {"expert": 1}


def test_all_of_v1_needs_a_key_and_nothing_else_does(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    state = make_state(doors=Doors(KEYS))
    with serving(state) as http:
        paths = http.get("/openapi.json").json()["paths"]
        guarded = [
            (path, m) for path, methods in paths.items() for m in methods if path[:4] == "/v1/"
        ]
        assert len(guarded) >= 5 + len(CHANGES)
        for path, method in guarded:
            for key in (None, "sk-11", "rooted"):
                answer = http.request(method, path, headers=bearer(key))
                assert (answer.status_code, path) == (401, path)
                assert answer.headers["www-authenticate"] == "Bearer"
                error = error_of(answer)
                assert (error["type"], error["code"]) == (
                    "invalid_request_error",
                    "invalid_api_key",
                )
                assert key is None or key not in answer.text
        for path in OPEN:
            assert http.get(path).status_code == 200, path
        for key in ("sk-1", "sk-2", "root"):
            answer = http.post("/v1/chat/completions", json=chat_body(), headers=bearer(key))
            assert answer.status_code == 200
            assert http.get("/v1/models", headers=bearer(key)).status_code == 200
        for path in ("/openapi.json", "/metrics"):
            assert not any(key in http.get(path).text for key in ("sk-1", "sk-2", "sk-11"))
    assert len(source_of(state).requests) == 3
    assert not any(key in caplog.text for key in ("sk-1", "sk-2"))


def test_a_refused_body_is_not_read() -> None:
    with serving(make_state(doors=Doors(KEYS), max_request_bytes=10)) as http:
        answer = http.post("/v1/chat/completions", content=b"x" * 100)
        assert answer.status_code == 401
        again = http.post("/v1/chat/completions", content=b"x" * 100, headers=bearer("sk-1"))
        assert again.status_code == 413


def test_pages_of_other_origins_may_read_only_where_allowed() -> None:
    origin = {"origin": "https://chat.example"}
    preflight = origin | {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    with serving(make_state()) as http:
        closed = http.get("/v1/models", headers=origin)
        assert http.options("/v1/chat/completions", headers=preflight).status_code == 405
    assert "access-control-allow-origin" not in closed.headers
    state = make_state(doors=Doors(KEYS), allowed_origins=("https://chat.example",))
    with serving(state) as http:
        asked = http.options("/v1/chat/completions", headers=preflight)
        answer = http.post(
            "/v1/chat/completions", json=chat_body(), headers=origin | bearer("sk-1")
        )
        refused = http.get("/v1/models", headers=origin)
        other = http.get("/v1/models", headers={"origin": "https://evil.example"} | bearer("sk-1"))
        streamed = http.post(
            "/v1/chat/completions", json=chat_body(stream=True), headers=origin | bearer("sk-1")
        )
    assert asked.status_code == 200
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()
    for shown in (asked, answer, refused, streamed):
        assert shown.headers["access-control-allow-origin"] == "https://chat.example"
    assert (answer.status_code, refused.status_code) == (200, 401)
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "foreign", "foreign_to_keyless"),
    [
        (None, "127.0.0.1:8000", (), False, False),  # no browser
        (None, "windrose.example", (), False, False),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", (), False, False),  # /docs
        ("http://127.0.0.1", "127.0.0.1", (), False, False),
        ("http://localhost:8000", "localhost:8000", (), False, False),
        ("http://[::1]:8000", "[::1]:8000", (), False, False),
        ("http://[::1]", "[::1]", (), False, False),
        ("https://windrose.example", "windrose.example", (), False, True),  # a proxy with TLS
        ("http://evil.example:8000", "evil.example:8000", (), False, True),  # its name leads here
        ("http://127.0.0.1.evil.example", "127.0.0.1.evil.example", (), False, True),
        (
            "https://windrose.example",
            "windrose.example",
            ("https://windrose.example",),
            False,
            False,
        ),
        ("http://127.0.0.1:3000", "127.0.0.1:8000", (), True, True),
        ("https://evil.example", "127.0.0.1:8000", (), True, True),
        ("https://evil.example", "127.0.0.1:8000", ("https://chat.example",), True, True),
        ("https://chat.example", "127.0.0.1:8000", ("https://chat.example",), False, False),
        ("https://evil.example", "127.0.0.1:8000", ("*",), False, False),
        ("null", "127.0.0.1:8000", (), True, True),  # a file, or a frame of nobody's
        ("", "127.0.0.1:8000", (), True, True),
        ("http://", None, (), True, True),
    ],
)
def test_which_pages_are_foreign(
    origin: str | None,
    host: str | None,
    allowed: tuple[str, ...],
    foreign: bool,
    foreign_to_keyless: bool,
) -> None:
    assert is_foreign(origin, host, allowed, keyless=False) is foreign
    assert is_foreign(origin, host, allowed, keyless=True) is foreign_to_keyless


def test_a_page_of_another_origin_changes_no_placement() -> None:
    state = make_state()  # no keys, as on a machine of one's own
    body = b'{"expert": 3, "expert_actors": 1}'  # as text: the browser asks nobody first
    with serving(state) as http:
        for path in CHANGES:
            foreign = {"origin": "https://evil.example", "content-type": "text/plain"}
            answer = http.post(path, content=body, headers=foreign)
            assert answer.status_code == 403
            assert "https://evil.example" in error_of(answer)["message"]
        led_here = {"origin": "http://evil.example:8000", "host": "evil.example:8000"}
        assert http.post("/v1/experts/rebalance", headers=led_here).status_code == 403
        assert source_of(state).changes == []
        own = {"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"}
        assert http.post("/v1/experts/rebalance", headers=own).status_code == 200
    assert len(source_of(state).changes) == 1
