"""Writes a checkpoint tensor by tensor, as Hugging Face lays it out: shards and their index.

Names, shapes and dtypes are known beforehand, so a shard's header is written first and its tensors
follow one after another: no more than one is in memory. A shard that is not whole is called
`.part`; what is in it is kept when the writing is taken up again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import torch

from model.checkpoint import INDEX_FILE, SINGLE_FILE

_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor that is to be written."""

    key: str
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Unit:
    """What is stored of one tensor of the source: itself or its factors, which stay together."""

    source: str
    tensors: tuple[TensorPlan, ...]

    @property
    def num_bytes(self) -> int:
        """Of all of them."""
        return sum(tensor.num_bytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A file and what it is to hold, in order."""

    name: str
    units: tuple[Unit, ...]

    @property
    def tensors(self) -> list[TensorPlan]:
        """All of them, in order."""
        return [tensor for unit in self.units for tensor in unit.tensors]


def plan_shards(units: Iterable[Unit], shard_bytes: int) -> tuple[ShardPlan, ...]:
    """Fill one file after another, in order; what is larger than a shard has one of its own."""
    groups: list[list[Unit]] = []
    room = 0
    for unit in units:
        if not groups or unit.num_bytes > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(unit)
        room -= unit.num_bytes
    if len(groups) == 1:
        return (ShardPlan(SINGLE_FILE, tuple(groups[0])),)
    return tuple(
        ShardPlan(f"model-{number:05}-of-{len(groups):05}.safetensors", tuple(group))
        for number, group in enumerate(groups, start=1)
    )


def index_of(shards: Sequence[ShardPlan]) -> dict[str, object]:
    """What the index says of several shards."""
    total = sum(tensor.num_bytes for shard in shards for tensor in shard.tensors)
    weight_map = {tensor.key: shard.name for shard in shards for tensor in shard.tensors}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


class ShardWriter:
    """One shard while it is written, unit by unit in the order of the plan.

    `num_kept` units are there already where an earlier run of the same plan was interrupted.
    """

    def __init__(self, directory: Path, plan: ShardPlan) -> None:
        self._target = directory / plan.name
        self._part = self._target.with_name(f"{plan.name}.part")
        header = _header(plan.tensors)
        start = len(header).to_bytes(8, "little") + header
        self.num_kept = 0
        end = len(start)
        self._part.touch()
        self._file: BinaryIO = self._part.open("r+b")
        if self._file.read(end) == start:
            size = self._part.stat().st_size
            for unit in plan.units:
                if end + unit.num_bytes > size:
                    break
                end += unit.num_bytes
                self.num_kept += 1
        else:
            self._file.seek(0)
            self._file.write(start)
        self._file.seek(end)
        self._file.truncate()
        self._due = iter(plan.units[self.num_kept :])

    def __enter__(self) -> Self:
        return self

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Append a unit's tensors.

        Raises:
            ValueError: they are not those that the plan has next.
        """
        due = next(self._due, None)
        found = [(key, tuple(tensor.shape), tensor.nbytes) for key, tensor in tensors.items()]
        planned = due.tensors if due is not None else ()
        if found != [(one.key, one.shape, one.num_bytes) for one in planned]:
            raise ValueError(f"{self._target}: {found} came, {due} was due")
        for tensor in tensors.values():
            data = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
            self._file.write(data.numpy().data)
        self._file.flush()

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        if kind is None:
            missing = next(self._due, None)
            if missing is not None:
                raise ValueError(f"{self._target}: {missing.source} was not written")
            self._part.rename(self._target)


def _header(tensors: Sequence[TensorPlan]) -> bytes:
    header: dict[str, Mapping[str, object]] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        header[tensor.key] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)  # tensors begin at multiples of eight


def write_index(directory: Path, shards: Sequence[ShardPlan]) -> None:
    """Write the index of several shards; one alone has none."""
    if len(shards) > 1:
        (directory / INDEX_FILE).write_text(json.dumps(index_of(shards), indent=2) + "\n")
