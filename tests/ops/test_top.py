"""`windrose top` and `experts --watch`: what two looks at a server make of each other."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from actors.metrics.metrics_text import metrics_text
from actors.metrics.tally import Series, Value
from ops.cli import main
from ops.experts import ExpertsBody
from ops.snapshot import Interval, Snapshot, samples_of
from ops.top import picture
from ops.wind_rose import wind_rose
from tests.ops.http_stub import Reply, Stub, json_reply, stub_server
from tests.ops.test_experts_command import BODY

COUNTS: dict[Series, Value] = {
    ("windrose_generation_tokens",): (100.0,),
    ("windrose_step_seconds", "p0", "0", "attention", "compute"): (5.0,),
    ("windrose_engine_rows", "p0", "0"): (40.0,),
    ("windrose_request_success", "stop"): (7.0,),
}
LATER: dict[Series, Value] = {
    ("windrose_generation_tokens",): (300.0,),
    ("windrose_step_seconds", "p0", "0", "attention", "compute"): (6.0,),
    ("windrose_engine_rows", "p0", "0"): (440.0,),
    ("windrose_request_success", "stop"): (8.0,),
}


def snapshot(at_s: float, counts: dict[Series, Value], tokens: list[list[int]]) -> Snapshot:
    gauges: dict[Series, float] = {("windrose_num_requests_running", "p0", "0"): 3.0}
    body = ExpertsBody.model_validate(BODY | {"tokens": tokens})
    return Snapshot(at_s, samples_of(metrics_text(counts, gauges, "m")), body)


BEFORE = snapshot(10.0, COUNTS, [[10, 20, 30, 40], [0, 0, 0, 0]])
NOW = snapshot(12.0, LATER, [[10, 20, 30, 60], [60, 0, 0, 20]])


def shown(interval: Interval, layer: int | None = None) -> str:
    out = io.StringIO()
    Console(file=out, width=140, markup=False).print(picture(interval, layer, False))
    return out.getvalue()


def test_counters_are_told_as_what_happened_in_between() -> None:
    out = shown(Interval(BEFORE, NOW))
    for figure in ("running 3", "output 100 tokens/s", "finished 8", "first token -"):
        assert figure in out
    (actor,) = [line for line in out.splitlines() if "attention" in line and "p0" in line]
    assert re.findall(r"\d+%", actor) == ["0%", "50%", "0%"]  # one of two seconds
    assert re.search(r"\b200\b", actor)  # rows a second


def test_experts_are_those_of_the_interval_and_layer() -> None:
    every, second = shown(Interval(BEFORE, NOW)), shown(Interval(BEFORE, NOW), 0)
    assert [s for s in ("60.0%", "0.0%", "40.0%") if s in every] == ["60.0%", "0.0%", "40.0%"]
    assert "100.0%" in second and "layer 0" in second
    with pytest.raises(ValueError, match="no layer 2"):
        shown(Interval(BEFORE, NOW), 2)


def test_a_server_that_began_anew_is_shown_from_its_beginning() -> None:
    assert Interval(NOW, BEFORE).tokens() == BEFORE.experts.tokens
    assert Interval(NOW, BEFORE).rate("windrose_generation_tokens_total") == 0.0


def test_a_rose_of_eight_winds() -> None:
    lines = wind_rose([8, 0, 4, 0, 0, 0, 0, 2], ascii_only=True)
    middle = next(i for i, line in enumerate(lines) if "+" in line)
    column = lines[middle].index("+")
    north = [line[column] for line in lines[:middle] if len(line) > column]
    assert north == ["0", *"******"]  # its length is all there is, its number at its end
    assert lines[middle][column:].count("*") == 6 and lines[middle].endswith("2")
    assert lines[middle + 1][column] == "4" and "*" not in "".join(lines[middle + 1 :])


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=16))
def test_any_rose_has_every_number_and_stays_in_its_frame(loads: list[float]) -> None:
    lines = wind_rose(loads)
    assert len(lines) == 15 and max(map(len, lines)) <= 33
    # Neighbours without load may lie on each other; those of a strong wind stand alone.
    strongest = max(range(len(loads)), key=loads.__getitem__)
    if max(loads) > 0:
        assert str(strongest)[0] in "".join(lines)
        assert "●" in "".join(lines)
    else:
        assert "●" not in "".join(lines)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "140")
    with stub_server() as server:
        server.replies["/v1/experts"] = json_reply(BODY)
        text = metrics_text(COUNTS, {}, "m").encode()
        server.replies["/metrics"] = Reply(200, [text], "text/plain; version=0.0.4")
        yield server


def test_once_prints_one_picture(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--url", stub.url, "--once", "--interval", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "output 0 tokens/s" in out and "all layers" in out and "expert" in out


def test_what_cannot_be_watched_is_refused(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["top"], ["experts", "--watch"]):
        assert main([*command, "--url", stub.url, "--layer", "2"]) == 2
        assert "no layer 2" in capsys.readouterr().err
    stub.replies["/metrics"] = Reply(200, [b"<html>"], "text/html")
    assert main(["top", "--url", stub.url]) == 1
    assert "does not answer as Windrose does" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["top", "--interval", "0"])
    assert "'0' is not a number of seconds" in capsys.readouterr().err


def test_repeat_rates_by_layer(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    rates = {"first": [0.125, 0.28], "any": [0.4643, 0.6]}
    stub.replies["/v1/experts"] = json_reply(BODY | {"repeat_rates": rates})
    assert main(["experts", "--url", stub.url, "--repeat-rate"]) == 0
    out = capsys.readouterr().out
    assert "12.5%" in out and "46.4%" in out and "28.0%" in out and "60.0%" in out
    stub.replies["/v1/experts"] = json_reply(BODY)
    assert main(["experts", "--url", stub.url, "--repeat-rate"]) == 0
    assert "no tokens yet" in capsys.readouterr().out
