"""Writing a safetensors file one tensor at a time; the library's own writer wants all of them.

A file is its header's length (8 bytes, little-endian), the header in JSON padded with spaces to a
multiple of 8, and the tensors' bytes without gaps.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from model.shards import CheckpointError, TensorEntry, read_header

if TYPE_CHECKING:
    import torch

PARTIAL_SUFFIX = ".partial"
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class PlannedFile:
    """A file to be written: its tensors in order, (key, safetensors' dtype, shape, bytes) each."""

    name: str
    tensors: tuple[tuple[str, str, tuple[int, ...], int], ...]

    @cached_property
    def header(self) -> bytes:
        """What the file begins with."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        start = 0
        for key, dtype, shape, size_bytes in self.tensors:
            end = start + size_bytes
            header[key] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
            start = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def keys(self) -> list[str]:
        """Names of its tensors."""
        return [key for key, *_ in self.tensors]

    @property
    def data_bytes(self) -> int:
        """Bytes of its tensors together."""
        return sum(size_bytes for *_, size_bytes in self.tensors)


def plan_files(
    entries: Iterable[tuple[str, TensorEntry]], most_bytes: int
) -> tuple[PlannedFile, ...]:
    """Share tensors out, in their order, over files of at most so many bytes of data each.

    A tensor that is larger has one to itself. Names are those of transformers.
    """
    groups: list[list[tuple[str, TensorEntry]]] = []
    room = 0
    for key, entry in entries:
        if not groups or entry.size_bytes > room:
            groups.append([])
            room = most_bytes
        groups[-1].append((key, entry))
        room -= entry.size_bytes
    return tuple(
        PlannedFile(
            f"model-{number:05}-of-{len(groups):05}.safetensors",
            tuple((k, e.dtype, e.shape, e.size_bytes) for k, e in _aligned(group)),
        )
        for number, group in enumerate(groups, 1)
    )


def _aligned(group: Sequence[tuple[str, TensorEntry]]) -> list[tuple[str, TensorEntry]]:
    """Tensors of wider elements first, so that each begins at a multiple of its element."""
    return sorted(group, key=lambda pair: -int(pair[1].dtype == "F32"))


def write_file(
    directory: Path,
    plan: PlannedFile,
    read: Callable[[str], torch.Tensor],
    on_written: Callable[[int], None],
    on_verified: Callable[[int], None],
) -> None:
    """Write one file, read it back from the disk and compare; only then does it get its name.

    At most one tensor is in memory at a time, besides what `read` takes.

    Raises:
        CheckpointError: what was read back differs; names file and key.
        OSError: the disk is full, or fails.
    """
    file = directory / (plan.name + PARTIAL_SUFFIX)
    digests: dict[str, bytes] = {}
    with file.open("wb", buffering=0) as out:
        _write_all(out.fileno(), memoryview(plan.header))
        for key, _, _, size_bytes in plan.tensors:
            data = _bytes_of(read(key))
            assert len(data) == size_bytes, f"{key}: {len(data)} bytes, {size_bytes} planned"
            digests[key] = hashlib.blake2b(data).digest()
            _write_all(out.fileno(), data)
            del data  # before the next one is read
            on_written(size_bytes)
        os.fsync(out.fileno())
        # What is read back is to come from the disk, not from the memory it was written from.
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    _verify(file, plan, digests, on_verified)
    file.replace(directory / plan.name)
    sync_directory(directory)


def is_written(directory: Path, plan: PlannedFile) -> bool:
    """Whether the file is there and has the planned header and size.

    Raises:
        CheckpointError: it is there and differs.
    """
    file = directory / plan.name
    if not file.exists():
        return False
    with file.open("rb") as written:
        same = written.read(len(plan.header)) == plan.header
    if not same or file.stat().st_size != len(plan.header) + plan.data_bytes:
        raise CheckpointError(f"{file}: not what this conversion writes there")
    return True


def sync_directory(directory: Path) -> None:
    """Make names in it last through a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verify(
    file: Path, plan: PlannedFile, digests: dict[str, bytes], on_verified: Callable[[int], None]
) -> None:
    """Read every tensor where the safetensors library finds it, and compare digests."""
    entries = read_header(file)
    if entries.keys() != digests.keys():
        raise CheckpointError(f"{file}: other tensors were read back than were written")
    with file.open("rb", buffering=0) as written:
        for key, dtype, shape, size_bytes in plan.tensors:
            entry = entries[key]
            digest = hashlib.blake2b()
            written.seek(entry.offset_bytes)
            rest = entry.size_bytes
            while rest and (piece := written.read(min(rest, _PIECE_BYTES))):
                digest.update(piece)
                rest -= len(piece)
            if (entry.dtype, entry.shape) != (dtype, shape) or digest.digest() != digests[key]:
                raise CheckpointError(f"{file}: {key} was read back other than it was written")
            on_verified(size_bytes)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data[: 1 << 30]) :]
