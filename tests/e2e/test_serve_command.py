"""`windrose serve` as a user runs it: a process of its own, real signals, nothing left behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from cluster.start_phases import read_phases
from tests.checkpoints import make_checkpoint
from tests.e2e.deployments import Cluster
from tests.e2e.launched import until
from tests.e2e.serve_process import START_TIMEOUT_S, Server, serving
from tests.e2e.streams import Stream, assert_under_way
from tests.ports import free_port


def assert_phases(printed: str) -> None:
    """It has said where the time of its start went, and each part took some."""
    spans = read_phases(printed)
    assert spans is not None, printed
    assert list(spans) == [
        "command", "ray", "serve", "node", "process", "import", "weights", "group", "health"
    ]  # fmt: skip
    assert sum(spans.values()) < START_TIMEOUT_S
    for name in ("command", "ray", "serve", "process", "import", "weights"):
        assert spans[name] > 0.0, spans


def test_serves_drains_on_sigterm_and_leaves_nothing(checkpoint: Path) -> None:
    flags = ("--attention-actors", "1", "--expert-actors", "2", "--max-model-len", "512")
    with serving(checkpoint, *flags, "--log-format", "json") as server:
        offered = shlex.split(server.announcement())
        assert_phases(server.printed)
        answer = json.loads(subprocess.run(offered, capture_output=True, check=True).stdout)
        assert answer["usage"]["completion_tokens"] > 0
        streams = [Stream(server.url, [1, 5 + i, 9], 400) for i in range(8)]
        for stream in streams:
            stream.start()
        for stream in streams:
            assert stream.started.wait(60.0)
        assert_under_way(streams)
        assert [one.name[:9] for one in server.directories() if one.exists()] == ["windrose-"]
        server.process.send_signal(signal.SIGTERM)
        status, stderr = server.end()
        for stream in streams:
            stream.join(60.0)
            assert stream.done
            assert len(stream.token_ids) == 400
        assert status == 0, stderr
        server.assert_nothing_left()
    # The actors' lines, and of their machines nothing else.
    lines = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    assert "pipeline_started" in {line["event"] for line in lines}
    requests = [line for line in lines if line["event"] == "request"]
    assert {line["path"] for line in requests} == {"/v1/chat/completions", "/v1/completions"}
    assert [line["completion_tokens"] for line in requests].count(400) == 8
    assert "ray.serve" not in stderr and "windrose_Ingress" not in stderr
    assert "ServeController" not in server.printed + stderr


class Refused(threading.Thread):
    """A `windrose serve` that waits for machines before it gives up; the other tests go on."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self.asked_s = self.said_s = 0.0  # when the start was told of, and when what it lacks
        self.lacks = ""

    def run(self) -> None:
        """Read what it says to its end."""
        assert self._server.process.stderr is not None
        for line in self._server.process.stderr:
            if "starting random-mixtral on 1 attention" in line:
                self.asked_s = time.monotonic()
            elif "asked:" in line:
                self.lacks, self.said_s = line, time.monotonic()

    def end(self) -> int:
        """Its exit status, once it has said all."""
        self.join(START_TIMEOUT_S)
        return self._server.end()[0]


def test_joins_a_running_cluster_and_leaves_it_running(cluster: Cluster, checkpoint: Path) -> None:
    flags = ("--expert-actors", "1", "--cpus-per-actor", "0.1")
    server = Server(checkpoint, *flags, port=cluster.port, ray_address=cluster.address)
    server.announcement()
    body = {"prompt": [1, 5, 9], "max_tokens": 4, "ignore_eos": True}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60.0)
    assert answer.json()["usage"]["completion_tokens"] == 4
    server.process.send_signal(signal.SIGTERM)
    status, stderr = server.end()
    assert status == 0, stderr
    assert "windrose" not in cluster.applications()
    assert httpx.get(f"{server.url}/-/healthz").status_code != 500, "the proxy still answers"


@pytest.fixture(scope="module")
def refused(cluster: Cluster, checkpoint: Path) -> Refused:
    flags = ("--expert-actors", "2", "--cpus-per-actor", "0.1", "--expert-accelerator", "H900")
    # Serve takes as long for the end of what never had a place, and its own end waits for that.
    drain = ("--drain-timeout", "1")
    server = Server(checkpoint, *flags, *drain, port=cluster.port, ray_address=cluster.address)
    waiting = Refused(server)
    waiting.start()
    return waiting


@pytest.mark.usefixtures("refused")
def test_says_where_serve_listens_on_a_cluster_and_takes_nothing_down(
    cluster: Cluster, checkpoint: Path
) -> None:
    until(lambda: "windrose" in cluster.applications(), 30.0)  # the other's, which waits
    server = Server(checkpoint, port=free_port(), ray_address=cluster.address)
    status, stderr = server.end()
    assert status == 1
    assert f"use --host 127.0.0.1 --port {cluster.port}" in stderr
    assert cluster.application_status("windrose") == "DEPLOYING"


def test_says_at_once_what_this_machine_lacks(checkpoint: Path) -> None:
    server = Server(checkpoint, "--attention-accelerator", "H900", port=free_port())
    status, stderr = server.end()
    assert status == 1
    assert "this machine has no room" in stderr and "(no machine has H900)" in stderr
    server.assert_nothing_left()


def test_ctrl_c_while_starting_leaves_nothing(checkpoint: Path) -> None:
    with serving(checkpoint, "--expert-actors", "2") as server:
        assert server.process.stderr is not None
        for line in server.process.stderr:
            if "starting random-mixtral on 1 attention" in line:
                break
        os.killpg(server.process.pid, signal.SIGINT)
        server.end()
        server.assert_nothing_left()


def test_drain_is_bounded(checkpoint: Path) -> None:
    flags = ("--max-model-len", "4096", "--shutdown-timeout", "0.5", "--max-num-seqs", "2")
    with serving(checkpoint, *flags) as server:
        server.announcement()
        stream = Stream(server.url, [1, 5, 9], 4000)
        stream.start()
        assert stream.started.wait(60.0)
        server.process.send_signal(signal.SIGTERM)
        asked_s = time.monotonic()
        status, stderr = server.end()
        assert time.monotonic() - asked_s < 60.0
        assert status == 0
        assert "1 requests did not finish in time" in stderr
        stream.join(60.0)
        assert stream.error is not None and "has shut down" in stream.error["message"]
        server.assert_nothing_left()


def test_ends_when_ray_has_ended_and_leaves_nothing(checkpoint: Path) -> None:
    with serving(checkpoint, "--max-model-len", "512") as server:
        server.announcement()
        children = psutil.Process(server.process.pid).children()
        next(child for child in children if child.name() == "raylet").kill()
        status, stderr = server.end()
        assert status == 1
        assert "windrose: Ray's raylet has ended; nothing can be served without it" in stderr
        server.assert_nothing_left()


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_ends_when_ray_ends_while_it_starts(checkpoint: Path, name: str) -> None:
    with serving(checkpoint, "--max-model-len", "512", "--start-timeout", "600") as server:
        server.await_line("windrose: starting random-mixtral on ")
        children = psutil.Process(server.process.pid).children()
        next(child for child in children if child.name() == name).kill()
        status, stderr = server.end()
        assert status == 1
        assert "nothing can be served without it" in stderr
        server.assert_nothing_left()


def test_refuses_what_cannot_be_served(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "broken", shards=2)
    shard = next(model.glob("*-00002-of-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    server = Server(model, port=free_port())
    status, stderr = server.end()
    assert status == 1
    assert shard.name in stderr
    assert "Traceback" not in stderr
    server.assert_nothing_left()


def test_says_when_the_port_is_taken(checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Server(checkpoint, port=taken.getsockname()[1])
        status, stderr = server.end()
    assert status == 1
    assert "is in use; choose another --port" in stderr


def test_says_what_is_missing_where_there_is_no_room(cluster: Cluster, refused: Refused) -> None:
    assert refused.end() == 1
    assert "asked: 3 x (CPU 0.1) + 2 x (CPU 0.1, H900); there is 1 machine: " in refused.lacks
    assert "(CPU 64); missing: 2 x (CPU 0.1, H900) (no machine has H900)" in refused.lacks
    assert "no autoscaler adds machines" in refused.lacks
    assert refused.said_s - refused.asked_s < 30.0
    gone = cluster.application_status("windrose")
    assert gone in (None, "DELETING")
