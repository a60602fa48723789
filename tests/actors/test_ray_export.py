"""The thread that tells Ray: what goes wrong there hurts nothing else."""

from __future__ import annotations

import threading

import pytest

from actors.metrics import ray_metrics
from actors.metrics.metrics_text import Gauges
from actors.metrics.ray_metrics import RayExport, keep_exporting
from actors.metrics.tally import Counts


class Noting(RayExport):
    """Notes what it is told; fails when it is to."""

    def __init__(self, fails: bool) -> None:
        super().__init__("m")
        self.fails = fails
        self.told: list[Counts] = []
        self.ended = threading.Event()

    def export(self, counts: Counts, gauges: Gauges) -> None:
        if self.fails:
            self.ended.set()
            raise RuntimeError("no agent")
        self.told.append(counts)

    def close(self) -> None:
        self.ended.set()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_metrics, "EXPORT_PERIOD_S", 0.01)


def test_it_goes_on_until_told_and_says_the_last_word() -> None:
    export, looks = Noting(fails=False), iter(range(1_000_000))
    end = keep_exporting(export, lambda: ({("x",): (float(next(looks)),)}, {}))
    while len(export.told) < 3:
        assert not export.ended.is_set()
    end.set()
    assert export.ended.wait(10)
    assert [counts["x",] for counts in export.told] == [(i,) for i in range(len(export.told))]


def test_a_failure_is_said_once_and_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    before = threading.active_count()
    export = Noting(fails=True)
    end = keep_exporting(export, lambda: ({}, {}))
    assert export.ended.wait(10)
    for thread in threading.enumerate():
        if thread.name == "ray-metrics":
            thread.join(10)
    assert threading.active_count() == before and not end.is_set()
    assert [record.message for record in caplog.records] == ["metrics are not told to Ray any more"]
