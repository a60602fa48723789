"""Running `python -m ops.bench` in this process, and what every result must have."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ops.bench.__main__ import main
from ops.bench.dispatch_ranks import DispatchPlan

STUB = Path(__file__).with_name("openai_stub.py")


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, Any], str]:
    """Exit status, the last line of stdout, and stderr."""
    status = main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    line: dict[str, Any] = json.loads(out.splitlines()[-1])
    return status, line, err


def check_envelope(line: dict[str, Any]) -> None:
    assert set(line) == {
        "bench", "commit", "dirty", "date", "hardware", "versions", "config", "results",
    }  # fmt: skip
    assert isinstance(line["dirty"], bool)
    assert set(line["hardware"]) == {"cpu", "cores", "memory_bytes", "gpu"}
    assert line["hardware"]["memory_bytes"] > 2**20
    assert line["versions"]["torch"] == torch.__version__
    assert {"python", "windrose", "transformers", "ray"} <= set(line["versions"])


def check_summary(figure: dict[str, Any], rounds: int) -> None:
    assert len(figure["rounds"]) == rounds
    # Zero: where this process is slow to read, two tokens of a stream come at once.
    assert 0 <= figure["min"] <= figure["median"] <= figure["max"] > 0


def stub_command(*flags: object, port: object = "{port}") -> tuple[str, ...]:
    """The words that start the stub server; without site packages, so in a moment."""
    return (sys.executable, "-S", str(STUB), "--port", str(port), *map(str, flags))


def leave_at_once(plan: DispatchPlan, port: int, rank: int) -> None:
    """An expert process that meets the others and then ends."""
    plan.meet(port, rank)
