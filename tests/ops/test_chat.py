from __future__ import annotations

import io
import socket
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from ops.cli import main
from ops.client import ServerError, connect, stream_chat
from tests.actors import http_serving
from tests.ops.chat_messages import assistant, user
from tests.ops.http_stub import (
    WAIT_FOR_THE_CLIENT_TO_LEAVE,
    Reply,
    Stub,
    delta,
    error_reply,
    event,
    json_reply,
    says,
    stub_server,
)

# A blank line, the separators that str.splitlines knows, more than a byte per letter, an escape.
AWKWARD = [
    "Bon",
    "jour\u2028",
    " l\u2019\u00e9t\u00e9\x85",
    "\r\n\n",
    "\U0001f999\x0b",
    "\x1b[31m!",
]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server() as server:
        yield server


def type_lines(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))


def test_one_question(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.chat = lambda _body: says("Hello", " there")
    assert main(["chat", "--url", stub.url, "What", "is this?"]) == 0
    assert capsys.readouterr() == ("Hello there\n", "")
    assert stub.bodies == [
        {"model": "demo", "messages": [user("What is this?")], "stream": True},
    ]


def test_with_windrose_s_own_http_surface(capsys: pytest.CaptureFixture[str]) -> None:
    answer = "H\u00e9, \U0001f999 \u2028 \U0001f44d\U0001f3fd"
    with http_serving.serving(http_serving.make_state(http_serving.says(answer))) as client:
        url = str(client.base_url)
        assert main(["chat", "--url", url, "Hi"]) == 0
        assert capsys.readouterr() == (answer + "\n", "")
        assert main(["chat", "--url", url, "--max-tokens", "-1", "Hi"]) == 1
        out, err = capsys.readouterr()
        assert (out, err.index("\n")) == ("", len(err) - 1)
        assert "answered 400: max_tokens" in err


def test_what_is_asked_for_is_sent(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--model", "other", "--system", "Be brief.", "--temperature", "0"]
    assert main(["chat", "--url", f"{stub.url}/v1/", *settings, "--max-tokens", "7", "Hi"]) == 0
    assert capsys.readouterr().out == "Hello\n"
    assert stub.bodies == [
        {
            "model": "other",
            "messages": [{"role": "system", "content": "Be brief."}, user("Hi")],
            "temperature": 0.0,
            "max_tokens": 7,
            "stream": True,
        },
    ]


def test_awkward_text_arrives_as_it_was_sent(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.chat = lambda _body: says(*AWKWARD)
    assert main(["chat", "--url", stub.url, "Hi \udcff\u2028"]) == 0
    assert capsys.readouterr().out == "".join(AWKWARD) + "\n"
    assert stub.bodies[0]["messages"] == [user("Hi ?\u2028")]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_events_are_found_wherever_the_network_cuts_them(stub: Stub, line_end: bytes) -> None:
    whole = b": a comment\n\n" + b"".join(says(*AWKWARD).chunks)
    whole = whole.replace(b"\n", line_end)
    stub.chat = lambda _body: Reply(200, [whole[i : i + 1] for i in range(len(whole))])
    with connect(stub.url) as client, closing(stream_chat(client, {})) as stream:
        assert [piece for piece in stream if piece] == AWKWARD


def test_texts_come_before_the_answer_is_complete(stub: Stub) -> None:
    stub.chat = lambda _body: Reply(200, [delta(content="Hel"), WAIT_FOR_THE_CLIENT_TO_LEAVE])
    with connect(stub.url) as client:
        stream = stream_chat(client, {})
        assert next(stream) == "Hel"
        assert not stub.client_left.is_set()
        stream.close()
        assert stub.client_left.wait(10)


def test_a_conversation_is_kept(
    stub: Stub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.chat = lambda body: says("answer ", str(len(stub.bodies)))
    type_lines(monkeypatch, "one", "", "  two ", "/clear", "three", "/quit", "four")
    assert main(["chat", "--url", stub.url, "--system", "S"]) == 0
    assert capsys.readouterr() == ("answer 1\nanswer 2\na new conversation\nanswer 3\n", "")
    system = {"role": "system", "content": "S"}
    assert [body["messages"] for body in stub.bodies] == [
        [system, user("one")],
        [system, user("one"), assistant("answer 1"), user("two")],
        [system, user("three")],
    ]


def test_the_end_of_the_input_ends_it(
    stub: Stub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    type_lines(monkeypatch, "/help", "/nonsense here", "Hi")
    assert main(["chat", "--url", stub.url]) == 0
    out, err = capsys.readouterr()
    assert "/clear" in out
    assert "Ctrl-D" in out
    assert "there is no /nonsense;" in out
    assert out.endswith("\nHello\n")
    assert err == ""
    assert len(stub.bodies) == 1


def test_a_turn_without_an_answer_is_not_kept(
    stub: Stub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = iter([says(), says("now")])
    stub.chat = lambda _body: next(replies)
    type_lines(monkeypatch, "one", "two")
    assert main(["chat", "--url", stub.url]) == 0
    assert capsys.readouterr().out == "now\n"
    assert stub.bodies[1]["messages"] == [user("two")]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (error_reply(404, "the model 'x' does not exist"), "answered 404: the model 'x' does not"),
        (error_reply(429, "too many\nrequests"), "answered 429: too many requests"),
        (Reply(502, [b"<html>\nbad gateway</html>"]), "answered 502: <html> bad gateway</html>"),
        (Reply(503, []), "answered 503: Service Unavailable"),
        (Reply(200, [event({"error": {"message": "lost"}})]), "ended the answer: lost"),
        (Reply(200, [b"data: {nonsense\n\n"]), "no chat event: {nonsense"),
        (Reply(200, [event([])]), "no chat event: []"),
        (Reply(200, [b"hello"]), "ended the connection within the answer"),
    ],
)
def test_a_failure_is_one_line(
    stub: Stub, reply: Reply, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.chat = lambda _body: reply
    assert main(["chat", "--url", stub.url, "Hi"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("windrose chat: the server ")
    assert words in err
    assert err.index("\n") == len(err) - 1


def test_an_answer_that_breaks_off_is_shown_and_reported(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.chat = lambda _body: Reply(200, [delta(content="Hel")])
    assert main(["chat", "--url", stub.url, "Hi"]) == 1
    assert capsys.readouterr() == (
        "Hel\n",
        "windrose chat: the server ended the connection within the answer\n",
    )


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (json_reply({"data": []}), "lists no model"),
        (json_reply([]), "lists no model"),
        (Reply(200, [b"<html>"]), "did not answer JSON"),
        (error_reply(503, "not ready yet"), "answered 503: not ready yet"),
    ],
)
def test_another_server_is_one_line(
    stub: Stub, reply: Reply, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.replies["/v1/models"] = reply
    assert main(["chat", "--url", stub.url, "Hi"]) == 1
    err = capsys.readouterr().err
    assert words in err
    assert err.index("\n") == len(err) - 1


@pytest.mark.parametrize("prompt", [["Hi"], []])
def test_no_server_is_one_line(prompt: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as bound:  # bound and not listening: refuses, and nobody can take it
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert main(["chat", "--url", url, *prompt]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"windrose chat: no server answers at {url}")
    assert "windrose serve" in err
    assert err.index("\n") == len(err) - 1


def test_a_url_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", "http://host:port", "Hi"]) == 1
    assert "http://host:port is no URL" in capsys.readouterr().err
    for arguments in (["--url", "localhost:8000"], ["--temperature", "nan"], ["--max-tokens", "x"]):
        with pytest.raises(SystemExit) as caught:
            main(["chat", *arguments])
        assert caught.value.code == 2
        assert arguments[0] in capsys.readouterr().err


def test_a_failure_is_a_server_error(stub: Stub) -> None:
    stub.chat = lambda _body: error_reply(400, "temperature: no")
    with connect(stub.url) as client, pytest.raises(ServerError, match="400: temperature: no"):
        next(stream_chat(client, {}))
