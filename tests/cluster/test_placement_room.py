"""When a start that lacks room says so, waits on, or is given up."""

from __future__ import annotations

import json

import pytest

from cluster.autoscaler import Autoscaler, first_of_status
from cluster.room import NoRoom, RoomWatch, View
from cluster.shortage import Node, Shortage

SHORT = Shortage(
    ({"CPU": 1.0, "GPU": 1.0},), (Node("10.0.0.1", {"CPU": 8.0}),), ({"CPU": 1.0, "GPU": 1.0},)
)
LACKING, HELD, FINE = View(SHORT, None), View(None, SHORT), View(None, None)


def test_without_an_autoscaler_it_is_given_up_when_patience_is_over() -> None:
    watch = RoomWatch()
    assert [watch.look(LACKING, now_s) for now_s in (100.0, 107.0, 114.9)] == [None] * 3
    with pytest.raises(NoRoom, match=r"no autoscaler.*asked: 1 x \(CPU 1, GPU 1\).*10\.0\.0\.1"):
        watch.look(LACKING, 115.0)


def test_a_shortage_that_passes_is_forgotten() -> None:
    watch = RoomWatch()
    for begin_s in (0.0, 20.0, 40.0):
        assert watch.look(LACKING, begin_s) is None
        assert watch.look(LACKING, begin_s + 14.0) is None
        assert watch.look(FINE, begin_s + 16.0) is None


def test_what_others_hold_is_told_and_waited_for() -> None:
    watch = RoomWatch()
    told = {now_s: watch.look(HELD, float(now_s)) for now_s in range(200)}
    times = [now_s for now_s, text in told.items() if text is not None]
    assert times == [15, 75, 135, 195]
    assert str(told[15]).startswith("waiting for what others use; asked:")


def test_an_autoscaler_is_waited_for_as_long_as_it_starts_machines() -> None:
    watch = RoomWatch()
    idle, busy = (View(SHORT, None, Autoscaler(s)) for s in ((), ("2 gpu_worker",)))
    texts = [watch.look(idle if now_s < 100 else busy, float(now_s)) for now_s in range(1000)]
    assert "the autoscaler may add" in str(texts[15])
    assert "the autoscaler starts 2 gpu_worker" in str(texts[100])
    assert watch.look(idle, 1000.0) is not None
    with pytest.raises(NoRoom, match="its autoscaler has started nothing for 120 s"):
        watch.look(idle, 1120.0)


def test_what_the_autoscaler_could_not_start_is_said() -> None:
    watch = RoomWatch()
    view = View(SHORT, None, Autoscaler((), ("gpu_worker: no capacity",)))
    assert watch.look(view, 0.0) is None
    assert "(gpu_worker: no capacity)" in str(watch.look(view, 15.0))
    with pytest.raises(NoRoom, match=r"for 120 s \(gpu_worker: no capacity\)"):
        watch.look(view, 135.0)


def status(**report: object) -> bytes:
    """As Ray's monitor writes it."""
    empty: dict[str, object] = {"active_nodes": {}, "pending_nodes": [], "pending_launches": {}}
    return json.dumps({"time": 1.0, "autoscaler_report": empty | report}).encode()


def test_a_monitor_that_only_looks_is_no_autoscaler() -> None:
    one, two = "node_" + "6c2e9cda" * 7, "node_" + "fa01c9c6" * 7
    assert first_of_status(None) is None
    assert first_of_status(b'{"time": 1.0}') is None
    assert first_of_status(status(active_nodes={one: 1, two: 1})) is None


def test_an_autoscaler_says_what_it_starts_and_could_not() -> None:
    assert first_of_status(status(active_nodes={"ray.head.default": 1})) == Autoscaler(())
    report = status(
        active_nodes={"head": 1},
        pending_nodes=[["id", "10.0.0.2", "gpu", "setting-up"]],
        pending_launches={"gpu": 2, "cpu": 0},
        node_availability_summary={
            "node_availabilities": {
                "big": {
                    "node_type": "big",
                    "is_available": False,
                    "unavailable_node_information": {
                        "category": "InsufficientInstanceCapacity",
                        "description": "there are none",
                    },
                },
                "gpu": {"node_type": "gpu", "unavailable_node_information": None},
            }
        },
    )
    assert first_of_status(report) == Autoscaler(("3 gpu",), ("big: there are none",))
