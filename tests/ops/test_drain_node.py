"""A node that goes away: emptied first, and nobody notices."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import ray

from ops.drain_node import arguments, drain_node, main
from tests.command_lines import ROOT


class Node:
    """A clock that only `sleep` moves, and replicas that leave at given times."""

    def __init__(self, leave_at_s: dict[str, float]) -> None:
        self.now_s = 100.0
        self.leave_at_s = leave_at_s
        self.asked_at_s: float | None = None

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def drain(self, timeout_s: float) -> None:
        self.asked_at_s = self.now_s
        self.timeout_s = timeout_s

    def replicas(self) -> Iterator[str]:
        assert self.asked_at_s is not None, "asked for first"
        for name, at_s in self.leave_at_s.items():
            if self.now_s < self.asked_at_s + at_s:
                yield name


def drained(node: Node, timeout_s: float) -> list[str]:
    return drain_node(timeout_s, node.drain, node.replicas, clock=node.clock, sleep=node.sleep)


def test_it_waits_for_the_last_replica() -> None:
    node = Node({"router": 3.0, "ingress": 12.2})
    assert drained(node, 30.0) == []
    assert node.timeout_s == 30.0
    assert 112.2 <= node.now_s < 113.2


def test_an_empty_node_is_not_waited_for() -> None:
    node = Node({})
    assert drained(node, 30.0) == []
    assert (node.asked_at_s, node.now_s) == (100.0, 100.0)


def test_it_does_not_wait_for_ever() -> None:
    node = Node({"router": 3.0, "ingress": 1e9, "another": 1e9})
    assert drained(node, 30.0) == ["another", "ingress"]
    assert 130.0 <= node.now_s < 131.0


def test_its_arguments() -> None:
    assert arguments(["--timeout", "7.5"]).timeout == 7.5
    assert arguments([]).timeout > 0
    with pytest.raises(SystemExit):
        arguments(["--time", "7.5"])


def test_where_there_is_no_ray_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**_options: object) -> None:
        raise ConnectionError("no cluster here")

    monkeypatch.setattr(ray, "init", init)
    assert main(["--timeout", "1"]) == 1
    assert capsys.readouterr().err == "ops.drain_node: no cluster here\n"


@pytest.mark.alone
def test_a_worker_is_drained_under_load_and_taken_away() -> None:
    """Router and ingress move to the other worker; every stream gets its whole answer."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.draining_cluster", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    roles = ["ServeReplica:windrose:Ingress", "ServeReplica:windrose:Router"]
    assert sorted(result["before"]) == roles
    assert result["left"] == []
    assert sorted(result["after"]) == roles
    assert result["requests"] >= result["served_before_it_went"] + 3
    assert result["calm"]
    assert result["different"] == []
