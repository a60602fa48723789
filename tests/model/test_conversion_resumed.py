"""Conversions that are stopped, killed and resumed, or made beside another."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.conversion import RECORD_FILE, ConversionError, convert, plan_conversion
from model.shards import CheckpointError
from tests.checkpoints import make_checkpoint
from tests.model.conversion_runs import INDEX, SHARD_BYTES, ignore, run
from tests.raw_checkpoints import write_raw


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("hf"), max_positions=32768)


@pytest.fixture(scope="module")
def raw(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(mixtral, tmp_path_factory.mktemp("raw"), "release")


_CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from model.conversion import convert, plan_conversion

source, target, shard_bytes, kill_after = sys.argv[1:]
plan = plan_conversion(Path(source), Path(target), int(shard_bytes))
memory = lambda name: next(
    int(line.split()[1]) * 1024
    for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
plan.checkpoint.read("model.norm.weight").float()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = memory("VmRSS")
written = 0

def on_written(count):
    global written
    written += count
    if written > int(kill_after):
        os.kill(os.getpid(), signal.SIGKILL)

kept = convert(plan, on_written, lambda count: None)
print(kept, memory("VmHWM") - before)
"""


def child(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _CHILD, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])


def test_a_killed_conversion_goes_on_where_it_was_in_the_memory_of_a_few_tensors(
    tmp_path: Path,
) -> None:
    source = make_checkpoint(
        tmp_path / "hf", hidden=512, ffn=2048, experts=8, layers=1, dtype="float32"
    )
    raw = write_raw(source, tmp_path / "raw", "release")
    shutil.rmtree(source)
    largest = 512 * 2048 * 4
    total = Checkpoint(raw).total_bytes(Checkpoint(raw).entries)
    assert total > 24 * largest
    target, shard_bytes = tmp_path / "converted", 5 * largest
    killed = child(raw, target, shard_bytes, total // 2)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    finished = {path: path.stat().st_mtime_ns for path in target.glob("*.safetensors")}
    assert len(finished) >= 2
    assert list(target.glob("*.partial")), "it was killed while it wrote a shard"
    assert not (target / INDEX).exists()
    with pytest.raises(CheckpointError, match="neither"):
        Checkpoint(target)

    ended = child(raw, target, shard_bytes, 10 * total)
    assert ended.returncode == 0, ended.stderr
    kept, grown_bytes = map(int, ended.stdout.split())
    assert kept == len(finished)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert grown_bytes < 5 * largest < total / 5
    assert not list(target.glob("*.partial")) and not (target / RECORD_FILE).exists()
    want, got = Checkpoint(raw), Checkpoint(target)
    got.verify(ModelConfig.from_dir(target))
    assert all(torch.equal(got.read(key), want.read(key)) for key in want.entries)


class Stop(Exception): ...


def stop_after(count: int) -> Callable[[int], None]:
    """A callback that ends the conversion at its so many-th call."""
    calls = 0

    def on_bytes(_size: int) -> None:
        nonlocal calls
        calls += 1
        if calls > count:
            raise Stop

    return on_bytes


@pytest.mark.parametrize("calls", [0, 1, 7, 30, 33])
def test_wherever_it_stops_there_is_no_checkpoint_and_it_goes_on(
    raw: Path, tmp_path: Path, calls: int
) -> None:
    target = tmp_path / "converted"
    with pytest.raises(Stop):
        convert(plan_conversion(raw, target, SHARD_BYTES), ignore, stop_after(calls))
    with pytest.raises(CheckpointError):
        Checkpoint(target)
    done = len(list(target.glob("*.safetensors")))
    assert run(raw, target) == done
    Checkpoint(target).verify(ModelConfig.from_dir(target))


def test_a_stop_between_the_index_and_the_end_is_made_good(raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "converted"
    plan = plan_conversion(raw, target, SHARD_BYTES)
    run(raw, target)
    (target / RECORD_FILE).write_text(json.dumps(plan.record))
    assert run(raw, target) == len(plan.files)
    assert not (target / RECORD_FILE).exists()


def test_part_of_another_conversion_is_left_alone(raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "converted"
    with pytest.raises(Stop):
        convert(plan_conversion(raw, target, SHARD_BYTES), ignore, stop_after(9))
    shutil.copytree(raw, tmp_path / "copy")
    for source, shard_bytes in ((raw, 2 * SHARD_BYTES), (tmp_path / "copy", SHARD_BYTES)):
        with pytest.raises(ConversionError, match=f"part of another conversion .of {raw}"):
            run(source, target, shard_bytes)
    shard = next(target.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{shard.name}: not what this conversion writes"):
        run(raw, target)


def test_two_at_once_do_not_write_the_same_directory(raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "converted"
    refused: list[bool] = []

    def second(_count: int) -> None:
        if not refused:
            with pytest.raises(ConversionError, match="another conversion is writing there"):
                run(raw, target)
            refused.append(True)

    convert(plan_conversion(raw, target, SHARD_BYTES), second, ignore)
    assert refused
