"""`windrose chat` as a process, at a terminal and between pipes: Ctrl-C, and who stops reading."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ops.cli import main
from tests.ops.chat_messages import assistant, user
from tests.ops.http_stub import (
    WAIT_FOR_THE_CLIENT_TO_LEAVE,
    Reply,
    Stub,
    delta,
    error_reply,
    says,
    stub_server,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server() as server:
        yield server


@contextmanager
def chat_process(
    url: str, stdin: int, stdout: int, *args: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`windrose chat`, which does not outlive the block."""
    environment = os.environ | {
        "TERM": "dumb",
        "HTTP_PROXY": "http://127.0.0.1:9",  # nobody there: this machine is reached without it
        "http_proxy": "http://127.0.0.1:9",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "ops.cli", "chat", "--url", url, *args],
        cwd=ROOT,
        env=environment,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(fd: int, wanted: bytes) -> bytes:
    found = b""
    while wanted not in found:
        chunk = os.read(fd, 4096)
        assert chunk, f"it ended after {found!r}"
        found += chunk
    return found


def test_ctrl_c_stops_the_answer_and_not_the_program(stub: Stub) -> None:
    replies = iter(
        [Reply(200, [delta(content="Once upon"), WAIT_FOR_THE_CLIENT_TO_LEAVE]), says("Yes.")]
    )
    stub.chat = lambda _body: next(replies)
    with chat_process(stub.url, subprocess.PIPE, subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"Tell me\n")
        process.stdin.flush()
        read_until(process.stdout.fileno(), b"Once upon")
        process.send_signal(signal.SIGINT)
        assert stub.client_left.wait(10)
        process.stdin.write("Is that all \U0001f999?\n".encode())
        process.stdin.close()
        assert process.stdout.read().strip() == b"Yes."
        assert process.stderr.read() == b""
        assert process.wait(10) == 0
    turns = [user("Tell me"), assistant("Once upon"), user("Is that all \U0001f999?")]
    assert stub.bodies[1]["messages"] == turns


def test_ctrl_c_at_the_prompt_is_harmless(
    stub: Stub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed: Iterator[str | BaseException] = iter([KeyboardInterrupt(), "Hi", EOFError()])

    def read(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    assert main(["chat", "--url", stub.url]) == 0
    assert capsys.readouterr() == ("\nHello\n", "")


def test_ctrl_c_ends_a_single_question(stub: Stub) -> None:
    stub.chat = lambda _body: Reply(200, [delta(content="Once"), WAIT_FOR_THE_CLIENT_TO_LEAVE])
    with chat_process(stub.url, subprocess.DEVNULL, subprocess.PIPE, "Tell me") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        read_until(process.stdout.fileno(), b"Once")
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"\n"
        assert process.stderr.read() == b""
        assert process.wait(10) == 130


def test_a_reader_that_has_seen_enough_is_no_error(stub: Stub) -> None:
    stub.chat = lambda _body: Reply(200, [delta(content="x" * 100_000)] * 10)
    with chat_process(stub.url, subprocess.DEVNULL, subprocess.PIPE, "Hi") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == b"x" * 10
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(10) == 1


def test_at_a_terminal(stub: Stub) -> None:
    replies = iter([error_reply(429, "wait a little"), says("red \x1b[31mrose", "\tor\x9b2J not")])
    stub.chat = lambda _body: next(replies)
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "r+b", buffering=0), chat_process(stub.url, theirs, theirs) as process:
        os.close(theirs)
        assert process.stderr is not None
        assert b"demo at http://127.0.0.1" in read_until(ours, b"> ")
        os.write(ours, b"Hi\n")
        read_until(process.stderr.fileno(), b"answered 429: wait a little\n")
        read_until(ours, b"> ")
        os.write(ours, b"Hi again\n")
        # The terminal is told nothing but text, whatever the model says.
        assert b"\x1b" not in read_until(ours, b"red [31mrose\tor2J not\r\n> ")
        os.write(ours, b"\x04")
        assert process.wait(10) == 0
        assert process.stderr.read() == b""
    assert stub.bodies[1]["messages"] == [user("Hi again")]
