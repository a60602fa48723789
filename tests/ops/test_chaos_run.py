"""`python -m ops.chaos` against a stub whose actors are real processes, and really killed."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ops.chaos import trial
from ops.chaos.__main__ import main
from ops.command_line import EXIT_USAGE
from tests.ops.chaos_stub import HEAD, LAST_CHUNK, Stub, chaos_stub, chunk, event

ARGS = (
    *("--duration", "1", "--every", "0.2", "--seed", "4"),
    *("--streams", "4", "--max-tokens", "8", "--settle", "0.1", "--kill"),
)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setattr(trial, "_CALM_REST_S", 0.0)
    with chaos_stub(("attention", 0), ("attention", 1), ("expert", 2), ("expert", 3)) as stub:
        yield stub


def run(stub: Stub, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, Any, str]:
    """Exit status, the JSON line (None if there is none), and stderr."""
    status = main(["--url", f"{stub.url}/v1/", *ARGS, *flags])
    out, err = capsys.readouterr()
    assert out.count("\n") <= 1, "one line, and only that"
    return status, json.loads(out) if out else None, err


def test_a_server_that_mends_itself_passes(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    first = {process.pid: process for process in stub.actors.values()}
    status, found, err = run(stub, capsys, "expert,attention")
    assert status == 0, err
    assert found["passed"] is True
    assert found["chaos"]["seed"] == 4
    assert found["chaos"]["url"] == stub.url
    assert found["requests"] > 0
    assert found["failed"] == found["changed"] == found["broken_by_ingress"] == 0
    assert found["strikes"] >= 1
    assert found["strikes"] == sum(found["strikes_by_cause"].values())
    assert found["unrecovered"] == 0
    assert found["recoveries"]["metric"] == found["recoveries"]["n"] == len(stub.replaced)
    assert set(found["gaps"]) > {"calm", "calm longest"}
    assert found["leaks"]["found"] == []
    assert found["leaks"]["before"]["actors"] == {"attention": 2, "expert": 2}
    assert {"commit", "date", "hardware", "versions", "health_down_s", "tokens"} <= set(found)
    assert sum(line.lstrip()[:1].isdigit() and " s  kill " in line for line in err.splitlines())
    killed = [process for process in first.values() if process.returncode is not None]
    assert killed
    assert {process.returncode for process in killed} == {-signal.SIGKILL}


def test_lost_tokens_and_failures_are_counted(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = stub.answer

    async def worse_after_a_death(body: dict[str, Any]) -> AsyncIterator[bytes]:
        if not stub.replaced:
            async for piece in whole(body):
                yield piece
        elif body["temperature"]:
            yield HEAD + chunk(event([1], "length")) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK
        else:
            yield HEAD + chunk(event([1]))

    stub.answer = worse_after_a_death
    status, found, err = run(stub, capsys, "expert")
    assert status == 1
    assert found["passed"] is False
    assert found["changed"] > 0
    assert found["failed"] == sum(found["failures"].values()) > 0
    assert "changed: request" in err
    assert "NOT passed" in err


def test_what_is_left_over_fails_it(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    whole = stub.answer

    async def never_finishes(body: dict[str, Any]) -> AsyncIterator[bytes]:
        stub.running = float(bool(stub.replaced))
        async for piece in whole(body):
            yield piece

    stub.answer = never_finishes
    status, found, err = run(stub, capsys, "expert")
    assert status == 1
    assert (found["failed"], found["changed"]) == (0, 0)
    [leak] = found["leaks"]["found"]
    assert leak.startswith("requests running without load")
    assert f"left over: {leak}" in err


def test_answers_that_differ_when_calm_are_left_out(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = stub.answer
    asked: dict[int, int] = {}

    async def counts_one(body: dict[str, Any]) -> AsyncIterator[bytes]:
        if body.get("seed") == 3:
            asked[3] = asked.get(3, 0) + 1
            body = {**body, "seed": 100 + asked[3]}
        async for piece in whole(body):
            yield piece

    stub.answer = counts_one
    status, found, err = run(stub, capsys, "expert")
    assert status == 0, err
    assert found["calm"] == {"requests": 16, "changed": 1}
    assert asked[3] == 2


@pytest.mark.parametrize(
    ("flags", "status", "reason"),
    [
        (["expert,router"], 1, "--kill router: the server lists no such actor, only 2 attention"),
        (["expert", "--max-tokens", "100"], EXIT_USAGE, "--max-tokens 100: the model's 100 tokens"),
    ],
)
def test_refuses_in_one_line_and_kills_nobody(
    stub: Stub,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    status: int,
    reason: str,
) -> None:
    found_status, found, err = run(stub, capsys, *flags)
    assert (found_status, found) == (status, None)
    assert reason in err
    assert err.count("\n") == 1
    assert all(process.poll() is None for process in stub.actors.values())


def test_a_server_that_fails_when_calm_is_not_struck(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    async def cut(_body: dict[str, Any]) -> AsyncIterator[bytes]:
        yield HEAD

    stub.answer = cut
    status, found, err = run(stub, capsys, "expert")
    assert (status, found) == (1, None)
    assert "8 of 8 requests failed before any strike" in err
    assert all(process.poll() is None for process in stub.actors.values())


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--url", "ftp://x"],
        ["--url", "http://x", "--serve", "y"],
        ["--url", "http://x", "--every", "0"],
        ["--url", "http://x", "--duration", "nan"],
        ["--url", "http://x", "--kill", "expert,,"],
        ["--url", "http://x", "--streams", "0"],
        ["--url", "http://x", "--signal", "term"],
    ],
)
def test_arguments_at_fault(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(flags)
    assert exited.value.code == EXIT_USAGE
    assert "error:" in capsys.readouterr().err


def test_a_server_of_its_own_that_does_not_start(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--serve", str(tmp_path / "none"), "--serve-args", "--expert-actors 2"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "windrose serve ended with status 1" in err.splitlines()[-1]
    assert str(tmp_path / "none") in err, "what it said itself is shown"
