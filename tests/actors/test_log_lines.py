"""What a process writes, and what of it `windrose serve` shows."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from actors.log_lines import _OWN, LogSettings, about, is_own
from actors.scheduling.preemption_log import PreemptionLog
from configs.process_settings import LogFormat, LogLevel


@contextmanager
def written(format_: LogFormat, level: LogLevel = "info", **where: object) -> Iterator[io.StringIO]:
    """What this project's loggers write meanwhile."""
    before = {name: vars(logging.getLogger(name)).copy() for name in _OWN}
    stream = io.StringIO()
    LogSettings(format_, level).configure("attention", stream, **where)
    try:
        yield stream
    finally:
        for name, fields in before.items():
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = fields["handlers"], fields["propagate"]
            logger.setLevel(fields["level"])


def say() -> None:
    log = logging.getLogger("actors.somewhere")
    log.debug("unseen")
    log.warning("lost %d", 7, extra=about("recovery", total_ms=1.5, lost=["expert 2"]))
    try:
        raise ValueError("of\nmany lines")
    except ValueError:
        log.exception("it broke")
    logging.getLogger("ray.serve").error("not ours")


def test_json_is_one_object_a_line() -> None:
    with written("json", rank=3) as stream:
        say()
        say()  # and no line twice
    lines = stream.getvalue().splitlines()
    recovery, failure = (json.loads(line) for line in lines[:2])
    assert len(lines) == 4 and all(is_own(line) for line in lines)
    assert recovery | {"time": ""} == {
        "time": "",
        "level": "warning",
        "event": "recovery",
        "message": "lost 7",
        "logger": "actors.somewhere",
        "process": "attention",
        "rank": 3,
        "total_ms": 1.5,
        "lost": ["expert 2"],
    }
    assert recovery["time"].endswith("Z") and recovery["time"][10] == "T"
    assert failure["event"] == "log" and "ValueError: of\nmany lines" in failure["exception"]


def test_text_is_told_apart_from_what_others_write() -> None:
    with written("text") as stream:
        say()
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("WARNING attention: lost 7")
    assert len(lines) > 5 and all(is_own(line) for line in lines)
    others = (
        "INFO 2026-11-21 12:00:00,1 windrose_Router -- GET / 200",
        "",
        "Traceback (most",
        "{}",
    )
    assert not any(is_own(line) for line in others)


@pytest.mark.parametrize(("level", "count"), [("debug", 3), ("info", 2), ("error", 1)])
def test_levels(level: LogLevel, count: int) -> None:
    with written("json", level) as stream:
        say()
    assert len(stream.getvalue().splitlines()) == count


def test_preemptions_are_gathered_into_a_line_a_second() -> None:
    log = PreemptionLog()
    with written("json") as stream:
        for at_s in (0.0, 0.4, 0.9, 1.0, 1.5):
            log.note(at_s, [f"r{at_s}"])
    found: list[dict[str, Any]] = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(one["count"], one["requests"][-1]) for one in found] == [(1, "r0.0"), (3, "r1.0")]
    assert {one["event"] for one in found} == {"preemption"}
