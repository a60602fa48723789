"""Where the time of a start went: one line for people that a benchmark can read back."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from actors.ranks.start_times import StartTimes

Phases = dict[str, float]  # seconds, in the order of their ends; they add up to the whole start

_LINE = re.compile(r"Started in ([0-9.]+) s: (.+)")
_PART = re.compile(r"([a-z]+) ([0-9.]+)")
_START_FIELD = 22  # of proc(5)'s stat, in ticks since the machine booted


def own_start_s() -> float:
    """time.time() at the start of this process, within a tick (10 ms).

    Not psutil's: it counts from the time of the boot, which Linux tells in whole seconds.
    """
    behind_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    ticks = int(behind_name[_START_FIELD - 3])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s


def phases(begun_s: float, ends_s: Mapping[str, float]) -> Phases:
    """Seconds from each end to the next. Times are time.time(), perhaps of several machines.

    What did not happen (an end of 0) and what clocks show in the wrong order took no time.
    """
    spans: Phases = {}
    last_s = begun_s
    for name, end_s in ends_s.items():
        spans[name] = max(0.0, end_s - last_s)
        last_s = max(last_s, end_s)
    return spans


def actor_ends(actors: Sequence[StartTimes]) -> dict[str, float]:
    """When the last actor had come through each phase."""
    return {
        "process": max((one.begun_s for one in actors), default=0.0),
        "import": max((one.imported_s for one in actors), default=0.0),
        "weights": max((one.loaded_s for one in actors), default=0.0),
        "group": max((one.met_s for one in actors), default=0.0),
    }


def phases_line(spans: Phases) -> str:
    """`Started in 14.2 s: ray 5.1, serve 2.0, ...`."""
    parts = ", ".join(f"{name} {span_s:.2f}" for name, span_s in spans.items())
    return f"Started in {sum(spans.values()):.1f} s: {parts}"


def read_phases(text: str) -> Phases | None:
    """The phases of such a line in what a server printed; None where there is none."""
    match = _LINE.search(text)
    if match is None:
        return None
    return {name: float(span_s) for name, span_s in _PART.findall(match[2])}
