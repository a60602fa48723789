"""A server of our own as a process: when it is ready, what it takes, how it ends."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from ops.client import ServerError
from ops.server_process import ServerProcess, windrose_serve
from tests.ops.bench_runs import stub_command
from tests.ports import free_port

START_TIMEOUT_S = 20.0


@pytest.fixture
def started() -> Iterator[list[ServerProcess]]:
    """Whatever a test starts, ended."""
    servers: list[ServerProcess] = []
    yield servers
    for server in servers:
        server.stop()


def start(started: list[ServerProcess], *flags: object) -> ServerProcess:
    port = free_port()
    server = ServerProcess("the stub", stub_command(*flags, port=port), port)
    started.append(server)
    return server


@pytest.mark.parametrize("flags", [(), ("--no-health",), ("--late-path",)])
def test_it_is_ready_when_it_says_so(started: list[ServerProcess], flags: tuple[str, ...]) -> None:
    server = start(started, "--ready-s", 0.4, *flags)
    ready_s = server.wait_until_ready(START_TIMEOUT_S)
    assert ready_s - server.started_s >= 0.4
    ended = server.stop()
    assert ended.status == 0 and ended.left == ()
    assert not psutil.pid_exists(server.pid)


def test_one_that_ends_or_is_never_ready_is_an_error(started: list[ServerProcess]) -> None:
    ends = start(started, "--no-such-flag")
    with pytest.raises(ServerError, match="the stub ended with status 2"):
        ends.wait_until_ready(START_TIMEOUT_S)
    never = start(started, "--ready-s", 1000)
    with pytest.raises(ServerError, match=r"the stub was not healthy after 0\.3 s"):
        never.wait_until_ready(0.3)


def test_memory_is_that_of_all_its_processes(started: list[ServerProcess]) -> None:
    small = start(started)
    large = start(started, "--hold-mb", 64, "--child")
    for server in started:
        server.wait_until_ready(START_TIMEOUT_S)
    one, two = small.memory(), large.memory()
    assert (one.processes, two.processes) == (1, 2)
    for memory in (one, two):
        assert 0 < memory.pss_bytes < memory.rss_bytes  # the C library is everyone's
    assert two.pss_bytes - one.pss_bytes > 60 << 20


def test_processor_time_is_that_of_its_own_processes(started: list[ServerProcess]) -> None:
    busy, idle = start(started, "--busy"), start(started)
    for server in started:
        server.wait_until_ready(START_TIMEOUT_S)
    before, idle_before = busy.cpu_s(), idle.cpu_s()
    assert set(before) == {busy.pid} and set(idle_before) == {idle.pid}
    while busy.cpu_s()[busy.pid] - before[busy.pid] < 0.2:
        pass
    assert idle.cpu_s()[idle.pid] - idle_before[idle.pid] < 0.1


def test_what_it_leaves_is_named_and_ended(started: list[ServerProcess]) -> None:
    server = start(started, "--child", "--leave-child", "--status", 3, "--end-s", 0.2)
    server.wait_until_ready(START_TIMEOUT_S)
    [child] = psutil.Process(server.pid).children()
    ended = server.stop()
    assert ended.status == 3
    assert ended.exit_s is not None and ended.exit_s >= 0.2
    assert ended.left == (f"process {child.pid} (sleep)",)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert server.stop().left == ()


def test_one_that_does_not_end_in_time_is_killed(started: list[ServerProcess]) -> None:
    server = start(started, "--end-s", 1000)
    server.wait_until_ready(START_TIMEOUT_S)
    ended = server.stop(timeout_s=0.2)
    assert ended.exit_s is None and ended.status is None
    assert len(ended.left) == 1 and str(server.pid) in ended.left[0]
    assert not psutil.pid_exists(server.pid)


def test_windrose_is_served_with_its_flags_and_a_port() -> None:
    words = windrose_serve("/models/mixtral", ["--expert-actors", "2"], "{port}")
    assert words[1:] == [
        "-m", "ops.cli", "serve", "/models/mixtral", "--expert-actors", "2", "--port", "{port}",
    ]  # fmt: skip
