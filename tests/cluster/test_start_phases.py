"""Phases of a start: they add up, whatever clocks say, and can be read back."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.ranks.start_times import StartTimes
from cluster.start_phases import actor_ends, phases, phases_line, read_phases

NAMES = ["command", "ray", "serve", "node", "process", "import", "weights", "group", "health"]


@given(st.lists(st.floats(0, 1000), min_size=9, max_size=9))
def test_phases_add_up_to_the_whole_even_where_clocks_disagree(ends: list[float]) -> None:
    spans = phases(100.0, dict(zip(NAMES, ends, strict=True)))
    assert list(spans) == NAMES
    assert min(spans.values()) >= 0.0
    assert sum(spans.values()) == pytest.approx(max(100.0, *ends) - 100.0)


def test_a_phase_ends_with_its_last_actor() -> None:
    fast = StartTimes(10.0, 11.0, 11.1, 12.0, 14.0)
    slow = StartTimes(10.5, 11.5, 11.6, 13.0, 14.1)
    ends = {"node": 9.0} | actor_ends([slow, fast]) | {"health": 15.0}
    assert phases(5.0, ends) == pytest.approx(
        {"node": 4.0, "process": 1.5, "import": 1.0, "weights": 1.5, "group": 1.1, "health": 0.9}
    )
    assert slow.durations() == {"import_s": 1.0, "weights_s": 1.4, "group_s": 1.1}


def test_what_did_not_happen_takes_no_time() -> None:
    colocated = StartTimes(10.0, 11.0, 11.0, 12.0)
    spans = phases(9.0, actor_ends([colocated]) | {"health": 13.0})
    assert (spans["group"], spans["health"]) == (0.0, 1.0)
    assert colocated.durations() == {"import_s": 1.0, "weights_s": 1.0}
    assert StartTimes(begun_s=10.0).durations() == {}
    assert actor_ends([]) == dict.fromkeys(("process", "import", "weights", "group"), 0.0)


@given(st.lists(st.floats(0, 5000), min_size=9, max_size=9))
def test_the_line_can_be_read_back(seconds: list[float]) -> None:
    spans = dict(zip(NAMES, seconds, strict=True))
    text = f"something before\n{phases_line(spans)}\nWindrose serves demo at http://x:1 s: 2\n"
    assert read_phases(text) == pytest.approx(spans, abs=0.0051)
    assert read_phases("Windrose serves demo") is None


def test_a_process_knows_when_it_was_started() -> None:
    told = (
        "import time; print(time.time()); time.sleep(0.5)\n"
        "from cluster.start_phases import own_start_s; print(own_start_s())"
    )
    before_s = time.time()
    child = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True)
    first_statement_s, start_s = map(float, child.stdout.split())
    tick_s = 0.01
    assert before_s - 2 * tick_s < start_s < first_statement_s
