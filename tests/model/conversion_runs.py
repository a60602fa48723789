"""Conversions in this process, into shards so small that there are several."""

from __future__ import annotations

from pathlib import Path

from model.conversion import convert, plan_conversion

SHARD_BYTES = 200_000
INDEX = "model.safetensors.index.json"


def run(source: Path, target: Path, shard_bytes: int = SHARD_BYTES) -> int:
    return convert(plan_conversion(source, target, shard_bytes), ignore, ignore)


def ignore(_count: int) -> None: ...
