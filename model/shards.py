"""Where each tensor of a set of safetensors files lies, from their headers and index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

_SAMPLE_BYTES = 256


class CheckpointError(ValueError):
    """A checkpoint's tensors cannot be used; the text names file and key."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: `offset_bytes` counts from the start of `file`.

    `shape` is what reading gives; the file may have the elements in another order.
    """

    file: Path
    dtype: str  # as safetensors spells it: F32, BF16, I64, ...
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int
    stored_key: str = ""  # its name in the file, where that is another
    is_transposed: bool = False  # the file has its columns one after another
    rotary_heads: int = 0  # so many heads, whose halves take turns row by row in the file


def sample_of(entry: TensorEntry) -> bytes:
    """Up to 256 bytes from a tensor's middle. OSError where they cannot be read."""
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.offset_bytes + max(0, (entry.size_bytes - _SAMPLE_BYTES) // 2))
        return file.read(min(_SAMPLE_BYTES, entry.size_bytes))


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one file.

    Raises:
        CheckpointError: absent, truncated or damaged.
    """
    try:
        # The "np" flavour maps the file read-only, which costs no memory; opening checks the
        # header against itself and against the file's size.
        with safe_open(file, framework="np"), file.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header: dict[str, Any] = json.loads(raw.read(length))
    except SafetensorError as error:
        raise CheckpointError(f"{file}: damaged or truncated: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    header.pop("__metadata__", None)
    return {
        key: TensorEntry(
            file=file,
            dtype=value["dtype"],
            shape=tuple(value["shape"]),
            offset_bytes=8 + length + value["data_offsets"][0],
            size_bytes=value["data_offsets"][1] - value["data_offsets"][0],
        )
        for key, value in header.items()
    }


def read_shards(index: Path, weight_map: Mapping[str, str]) -> dict[str, TensorEntry]:
    """The tensors that an index names, by file; others in its shards do not count.

    Raises:
        CheckpointError: a shard is missing or damaged, or lacks a tensor the index puts there.
    """
    shards: dict[str, dict[str, TensorEntry]] = {}
    entries = {}
    for key, name in weight_map.items():
        if name not in shards:
            shard = index.with_name(name)
            if not shard.exists():
                raise CheckpointError(f"{shard}: missing; {index} says it holds {key}")
            shards[name] = read_header(shard)
        if key not in shards[name]:
            raise CheckpointError(
                f"{index.with_name(name)}: lacks {key}, which {index} says it has"
            )
        entries[key] = shards[name][key]
    return entries


def read_weight_map(index: Path) -> dict[str, str]:
    """Key to file name, as the index has it.

    Raises:
        CheckpointError: it is no index.
    """
    try:
        data = json.loads(index.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read: {error}") from error
    except ValueError as error:  # malformed JSON or UTF-8
        raise CheckpointError(f"{index}: not JSON: {error}") from error
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index}: weight_map is missing or no object")
    for key, name in weight_map.items():
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
            raise CheckpointError(f"{index}: weight_map[{key!r}] is {name!r}, not a file name")
    return weight_map
