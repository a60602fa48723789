"""`python -m ops.bench startup` with a small server as a process of its own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys

import psutil
import pytest

from cluster.start_phases import phases_line
from ops.bench.__main__ import main
from ops.bench.startup import without_paths
from ops.command_line import EXIT_INTERRUPTED
from tests.ops.bench_runs import check_envelope, check_summary, run, stub_command

pytestmark = pytest.mark.alone


def command(*flags: object) -> str:
    return shlex.join(stub_command("--name", "{model}", *flags))


def test_startup_times_count_from_the_start_and_memory_from_all_processes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    status, line, err = run(
        capfd, "startup", "some/tiny", "--rounds", 2, "--command",
        command("--ready-s", 0.3, "--token-ms", 50, "--end-s", 0.2, "--child", "--hold-mb", 32),
    )  # fmt: skip
    assert status == 0, err
    check_envelope(line)
    assert line["config"]["model"] == "tiny"
    assert line["config"]["rounds"] == 2
    assert "openai_stub.py" in line["config"]["command"]  # without where it lies
    [result] = line["results"]
    for key in ("healthy_s", "first_token_s", "rss_bytes", "pss_bytes", "processes", "exit_s"):
        check_summary(result[key], rounds=2)
    rounds = zip(result["healthy_s"]["rounds"], result["first_token_s"]["rounds"], strict=True)
    for healthy_s, first_token_s in rounds:
        assert healthy_s >= 0.3
        assert first_token_s >= healthy_s + 0.05
    assert result["processes"]["rounds"] == [2, 2]
    assert result["pss_bytes"]["min"] > 32 << 20
    assert result["pss_bytes"]["max"] <= result["rss_bytes"]["max"]
    assert result["exit_s"]["min"] >= 0.2
    assert result["errors"] == 0
    assert result["phases_s"] is None
    told = [entry for entry in err.splitlines() if entry.startswith("some/tiny ")]
    assert [entry.split()[1] for entry in told] == ["start", "asked", "end"] * 2
    assert [entry for entry in told if "asked" in entry] == ["some/tiny asked 1 str -"] * 2
    assert "PSS GB" in err


def test_where_a_server_says_its_time_went(capfd: pytest.CaptureFixture[str]) -> None:
    said = phases_line({"ray": 5.25, "serve": 2.0, "health": 0.5})
    status, line, err = run(
        capfd, "startup", "tiny", "--rounds", 2, "--command", command("--started", said)
    )
    assert status == 0, err
    [result] = line["results"]
    assert list(result["phases_s"]) == ["ray", "serve", "health"]
    assert result["phases_s"]["ray"]["rounds"] == [5.25, 5.25]
    assert "ray s" in err and "health s" in err
    assert err.count(said) == 2  # stdout is the report's


def test_a_server_that_ends_badly_fails_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    status, line, _ = run(
        capfd, "startup", "tiny", "--rounds", 1,
        "--command", command("--status", 4, "--child", "--leave-child"),
    )  # fmt: skip
    assert status == 1
    [result] = line["results"]
    assert result["errors"] == 2
    assert result["error_messages"][0] == "status 4 after SIGTERM"
    assert result["error_messages"][1].endswith("(sleep) was left")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--no-such-flag"], "ended with status 2"),
        (["--cut", 1, "--name", "{model}"], "its first answer"),
    ],
)
def test_a_server_that_does_not_answer_is_said_and_stopped(
    flags: list[object], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["startup", "m", "--rounds", "1", "--command", command(*flags)]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err.splitlines()[-1]


def test_interrupted_it_leaves_no_server() -> None:
    bench = subprocess.Popen(
        [sys.executable, "-m", "ops.bench", "startup", "m", "--command",
         command("--ready-s", 1000, "--child")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    assert bench.stderr is not None
    try:
        said = next(entry for entry in bench.stderr if entry.startswith("m start "))
        server = psutil.Process(int(said.split()[2]))
        family = [server, *server.children()]
        assert len(family) == 2
        os.kill(bench.pid, signal.SIGTERM)
        assert bench.wait(30) == EXIT_INTERRUPTED
        gone, alive = psutil.wait_procs(family, timeout=5)
        assert not alive and len(gone) == 2
    finally:
        bench.kill()
        bench.wait()
        bench.stderr.close()


def test_a_result_does_not_say_where_files_lie() -> None:
    words = ["/opt/venv/bin/python", "-m", "x", "/models/a b/mixtral", "--port", "{port}"]
    assert without_paths(words) == ["python", "-m", "x", "mixtral", "--port", "{port}"]
    words = [
        "env",
        "PATH=/opt/a/bin:/usr/bin",
        "--model=/models/mixtral",
        "--url=http://h/v1",
        "a/b",
    ]
    assert without_paths(words) == ["env", "PATH=bin", "--model=mixtral", *words[3:]]
