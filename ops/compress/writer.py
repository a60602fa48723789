"""Writes a checkpoint tensor by tensor, as Hugging Face lays it out: shards and their index.

Names, shapes and dtypes are known beforehand, so a shard's header is written first and its tensors
follow one after another: no more than one is in memory. A shard that is not whole is called
`.part`; one that is whole is kept when the writing is taken up again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
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
class ShardPlan:
    """A file and what it is to hold, in order."""

    name: str
    tensors: tuple[TensorPlan, ...]


def plan_shards(tensors: Sequence[TensorPlan], shard_bytes: int) -> tuple[ShardPlan, ...]:
    """Fill one file after another, in order; a tensor larger than a shard has one of its own."""
    groups: list[list[TensorPlan]] = []
    room = 0
    for tensor in tensors:
        if not groups or tensor.num_bytes > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(tensor)
        room -= tensor.num_bytes
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
    """One shard while it is written; `write` its tensors in the order of the plan."""

    def __init__(self, directory: Path, plan: ShardPlan) -> None:
        self._target = directory / plan.name
        self._part = self._target.with_name(f"{plan.name}.part")
        self._plan = plan
        self._due: Iterator[TensorPlan] = iter(plan.tensors)
        self._file: BinaryIO = self._part.open("wb")
        header = _header(plan.tensors)
        self._file.write(len(header).to_bytes(8, "little") + header)

    def __enter__(self) -> Self:
        return self

    def write(self, key: str, tensor: torch.Tensor) -> None:
        """Append a tensor.

        Raises:
            ValueError: it is not the one the plan has next.
        """
        due = next(self._due, None)
        if due is None or due.key != key or due.shape != tuple(tensor.shape):
            raise ValueError(f"{self._target}: {key} {list(tensor.shape)} comes, {due} was due")
        data = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
        if len(data) != due.num_bytes:
            raise ValueError(f"{self._target}: {key} is {tensor.dtype}, {due.dtype} was due")
        self._file.write(data.numpy().data)

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        if kind is None:
            missing = next(self._due, None)
            if missing is not None:
                raise ValueError(f"{self._target}: {missing.key} was not written")
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
