"""Nodes come and go with the load: Ray's autoscaler, with nodes that are processes here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_OF_THE_OTHER_RAY = ("RAY_", "SERVE_")


def test_a_second_pipeline_brings_a_node_and_takes_it_along(checkpoint: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(_OF_THE_OTHER_RAY)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.growing_cluster", str(checkpoint)],
        cwd=ROOT,
        env=clean | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["before"] == [1, 1]
    assert seen["under load"] == [2, 2]
    assert seen["answers"] >= 36
    assert seen["streams at the end of the load"] >= 1, "they ended before one was to go"
    assert seen["after"] == [1, 1]
