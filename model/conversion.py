"""From Mistral's own files to Hugging Face's layout, tensor by tensor, in steps that can be redone.

A shard that has its name is whole and has been read back; the index, without which nobody takes
the directory for a checkpoint, comes last. A record of what is being done tells a conversion that
goes on from one of something else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint import INDEX_FILE, Checkpoint
from model.config import ModelConfig
from model.fingerprint import weights_fingerprint
from model.hugging_face_files import write_json, write_small_files
from model.raw_files import is_raw
from model.safetensors_writing import (
    PARTIAL_SUFFIX,
    PlannedFile,
    is_written,
    plan_files,
    sync_directory,
    write_file,
)
from model.weights import EMBED_KEY, expected_shapes

RECORD_FILE = ".windrose-convert.json"
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class ConversionError(ValueError):
    """A conversion cannot be begun; the text names the directory at fault."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is to be written where."""

    checkpoint: Checkpoint
    config: ModelConfig
    target: Path
    files: tuple[PlannedFile, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(file.data_bytes for file in self.files)

    @property
    def record(self) -> dict[str, Any]:
        """What makes it the same conversion: the weights and how they are shared out."""
        source = str(self.checkpoint.directory)
        headers = (file.name.encode() + file.header for file in self.files)
        digest = hashlib.blake2b(b"".join(headers), digest_size=16).hexdigest()
        return {
            "source": source,
            "weights": weights_fingerprint(source, "as stored"),
            "files": digest,
        }


def plan_conversion(source: Path, target: Path, most_shard_bytes: int) -> Conversion:
    """Check the source and decide which shard holds what; nothing is written.

    Raises:
        ConversionError: the source is no directory, or not in Mistral's layout.
        ValueError: it cannot be used; names file and key.
    """
    source, target = source.resolve(), target.resolve()
    if not source.is_dir():
        raise ConversionError(f"{source}: no such directory")
    if not is_raw(source):
        raise ConversionError(
            f"{source}: not in Mistral's own layout (params.json beside consolidated.*); "
            "there is nothing to convert"
        )
    config = ModelConfig.from_dir(source, generation_config=False)
    checkpoint = Checkpoint(source)
    checkpoint.verify(config)
    keys = sorted(expected_shapes(config), key=_place)
    entries = ((key, checkpoint.entries[key]) for key in keys)
    return Conversion(checkpoint, config, target, plan_files(entries, most_shard_bytes))


def convert(
    conversion: Conversion,
    on_written: Callable[[int], None],
    on_verified: Callable[[int], None],
) -> int:
    """Write what is missing, and the index last; returns the shards that were there already.

    Raises:
        ConversionError: the target holds something else, is being written, or has no room.
        CheckpointError: a tensor cannot be read, or was read back other than it was written.
        OSError: the disk is full, or fails.
    """
    target, files = conversion.target, conversion.files
    with _claimed(conversion):
        missing = [file for file in files if not is_written(target, file)]
        _refuse_without_room(target, missing)
        done_bytes = conversion.total_bytes - sum(file.data_bytes for file in missing)
        on_written(done_bytes)
        on_verified(done_bytes)
        for file in missing:
            write_file(target, file, conversion.checkpoint.read, on_written, on_verified)
        write_small_files(conversion.checkpoint.directory, target, conversion.config)
        weight_map = {key: file.name for file in files for key in file.keys}
        sync_directory(target)
        metadata = {"total_size": conversion.total_bytes}
        write_json(target / INDEX_FILE, {"metadata": metadata, "weight_map": weight_map})
    return len(files) - len(missing)


@contextmanager
def _claimed(conversion: Conversion) -> Iterator[None]:
    """Hold the target for this conversion alone; its record goes once it is complete."""
    target, record = conversion.target, conversion.record
    if target.exists() and not target.is_dir():
        raise ConversionError(f"{target}: not a directory")
    target.mkdir(parents=True, exist_ok=True)
    file = target / RECORD_FILE
    if not file.exists() and any(target.iterdir()):
        raise ConversionError(f"{target}: not empty, and nothing in it is overwritten")
    with file.open("a+", encoding="utf-8") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConversionError(f"{target}: another conversion is writing there") from None
        held.seek(0)
        begun = _parse(held.read())
        if begun is not None and begun != record:
            raise ConversionError(
                f"{target}: holds part of another conversion (of {begun.get('source')}, or with "
                "other sizes of shards); remove it, or convert to elsewhere"
            )
        if begun is None:
            if set(target.iterdir()) != {file}:
                raise ConversionError(f"{file}: not the record of a conversion")
            held.truncate(0)
            held.write(json.dumps(record))
            held.flush()
        yield
        for partial in target.glob(f"*{PARTIAL_SUFFIX}"):
            partial.unlink()
        file.unlink()


def _parse(text: str) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except ValueError:  # cut short: killed while it was written, before anything else was
        return None
    return record if isinstance(record, dict) else None


def _refuse_without_room(target: Path, missing: list[PlannedFile]) -> None:
    partial_bytes = sum(one.stat().st_size for one in target.glob(f"*{PARTIAL_SUFFIX}"))
    free_bytes = shutil.disk_usage(target).free + partial_bytes
    needed_bytes = sum(len(file.header) + file.data_bytes for file in missing)
    if needed_bytes > free_bytes:
        raise ConversionError(
            f"{target}: {needed_bytes / 1e9:.1f} GB are to be written, and {free_bytes / 1e9:.1f} "
            "GB are free there"
        )


def _place(key: str) -> tuple[int, str]:
    """Embedding, then layer by layer, then norm and head."""
    match = _LAYER.match(key)
    return (int(match[1]) if match else -1 if key == EMBED_KEY else 1 << 30, key)
