"""The terminal commands at a server with keys."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from actors.http.doors import Doors, KeyDigests, digest
from ops.chaos.watch import Watch
from ops.cli import main
from ops.client import ServerError, connect
from tests.actors.http_serving import MODEL, make_state, says, serving, source_of
from tests.ops.bench_runs import run
from tests.ops.test_bench_http import counting

DOORS = Doors(KeyDigests(api=(digest("sk-user"),), admin=(digest("sk-root"),)))


@pytest.fixture
def url() -> Iterator[str]:
    with serving(make_state(says("Hello there"), doors=DOORS)) as http:
        yield str(http.base_url)


@pytest.mark.parametrize("command", ["chat", "experts", "replicate"])
def test_a_command_sends_the_key_it_is_given_or_the_environment_s(
    command: str, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = command == "replicate"
    argv = {
        "chat": ["chat", "--url", url, "Hi"],
        "experts": ["experts", "--url", url, "--json"],
        "replicate": ["experts", "replicate", "3", "--url", url],
    }[command]
    for name in ("WINDROSE_API_KEY", "WINDROSE_ADMIN_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert "answered 401" in err and "Authorization" in err
    flag = ("--admin-api-key", "sk-root") if admin else ("--api-key", "sk-user")
    assert main([*argv, *flag]) == 0
    monkeypatch.setenv("WINDROSE_API_KEY", "sk-user other")
    assert main(argv) == (1 if admin else 0)
    monkeypatch.setenv("WINDROSE_ADMIN_API_KEY", "sk-root")
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert "sk-" not in out + err


def test_the_key_of_experts_serves_its_changes_where_there_is_no_admin_key(
    capsys: pytest.CaptureFixture[str],
) -> None:
    doors = Doors(KeyDigests(api=DOORS.keys.api))
    with serving(make_state(doors=doors)) as http:
        argv = ["experts", "--api-key", "sk-user", "drop", "3", "--url", str(http.base_url)]
        assert main(argv) == 0


def test_a_key_that_no_header_carries_is_refused_unread(url: str) -> None:
    with pytest.raises(ServerError) as caught, connect(url, "sk-\n"):
        pass
    assert "ASCII" in str(caught.value) and "sk-" not in str(caught.value)


def test_benchmarks_and_chaos_send_it(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = make_state(counting, doors=DOORS)
    with serving(state) as http:
        status, line, err = run(
            capsys, "serve", "--url", http.base_url, "--api-key", "sk-user", "--concurrency", 2,
            "--requests", 2, "--prompt-tokens", 4, "--output-tokens", 5,
        )  # fmt: skip
        assert status == 0, err
    assert "sk-user" not in str(line) + err
    assert line["results"][0]["errors"] == 0
    assert len(source_of(state).requests) > 4

    async def watched() -> str:
        watch = Watch(url, "sk-user")
        try:
            return (await watch.model()).name
        finally:
            await watch.close()

    assert asyncio.run(watched()) == MODEL
