"""What is asked of a Ray of our own is answered, or Ray has ended: nobody waits for ever."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
from ray._private import worker

from cluster import local_ray
from cluster.local_ray import LocalRay, RayLost


class Node:
    """Ray's node here, some of whose processes have ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def dead_processes(self) -> list[tuple[str, Any]]:
        return [(name, object()) for name in self.ended]


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(local_ray, "_LOOK_EVERY_S", 0.01)
    node = Node()
    monkeypatch.setattr(worker, "_global_node", node)
    return node


@pytest.fixture
def own() -> LocalRay:
    own = LocalRay.__new__(LocalRay)  # it has started nothing, and so there is nothing to stop
    own.unanswered = False
    return own


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_what_cannot_be_done_without_is_missed(node: Node, own: LocalRay, name: str) -> None:
    own.require()
    node.ended = ["log_monitor", "monitor"]  # of those who look on
    own.require()
    node.ended.append(name)
    with pytest.raises(RayLost, match=f"Ray's {name} has ended"):
        own.require()


def test_before_ray_is_there_nothing_is_missed(
    monkeypatch: pytest.MonkeyPatch, own: LocalRay
) -> None:
    monkeypatch.setattr(worker, "_global_node", None)
    own.require()


def test_an_answer_and_an_error_come_to_who_asked(node: Node, own: LocalRay) -> None:
    assert own.ask(lambda: 7) == 7

    def fail() -> None:
        raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError, match="no"):
        own.ask(fail)


def test_nobody_waits_for_a_ray_that_ends_meanwhile(node: Node, own: LocalRay) -> None:
    never = threading.Event()

    def hang() -> None:
        node.ended.append("raylet")
        never.wait()

    with pytest.raises(RayLost):
        own.ask(hang)
    assert own.unanswered
    never.set()


def test_a_call_that_a_signal_leaves_alone_comes_to_its_end(node: Node, own: LocalRay) -> None:
    begun, ended = threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        signalled.wait()
        ended.set()

    signalled = threading.Event()

    def interrupt(_number: int, _frame: object) -> None:
        signalled.set()
        raise KeyboardInterrupt

    def strike() -> None:
        begun.wait()
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        threading.Thread(target=strike, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            own.ask(call, let_go_s=60.0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended.is_set()
    assert not own.unanswered
