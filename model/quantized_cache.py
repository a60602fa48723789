"""Quantized matrices on disk, so that a checkpoint is rounded once and not at every start.

A file a matrix, so that every role writes and reads its own, at any time and beside others. A file
counts only where it says that it was made from the very tensor that is asked for, and where its
contents have the checksum that it gives: torn, foreign and outdated ones are made again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from model.checkpoint import Checkpoint
from model.quantization import CompactMatrix, QuantizedMatrix, shape_of_scales
from model.shards import CheckpointError, sample_of

_VERSION = 1  # of the rounding and of these files: to be raised when either changes
_TOLD = "windrose"  # the entry in a file's header: what it was made from, and its checksum
_SUFFIX = ".safetensors"
_ABANDONED_S = 3600.0  # after this long nobody is still writing a file

logger = logging.getLogger(__name__)


class QuantizedCache:
    """The quantized matrices of one checkpoint, below a directory that need not exist yet.

    A directory that cannot be written costs a line in the log and nothing else.
    """

    def __init__(self, directory: str | Path, checkpoint: Checkpoint) -> None:
        self._directory = Path(directory)
        self._checkpoint = checkpoint
        self._writes = True

    def read(self, key: str, bits: int, dtype: torch.dtype) -> QuantizedMatrix | None:
        """The matrix `key` in so many bits, for rows of `dtype`; None where it has to be made.

        Raises:
            CheckpointError: the checkpoint's own file cannot be read.
        """
        outputs, inputs = self._checkpoint.entries[key].shape
        source = self._source(key, bits)
        try:
            with safe_open(self._file(key, bits), framework="pt") as file:
                told = (file.metadata() or {}).get(_TOLD, "")
                if not told.startswith(source):
                    return None
                # Copies: what is mapped would change with the file.
                numbers = file.get_tensor("numbers").clone()
                scales_OG = file.get_tensor("scales").clone()
        except (SafetensorError, OSError):
            return None
        width = inputs if bits == 8 else (inputs + 1) // 2
        fits = (
            (numbers.dtype, scales_OG.dtype) == (torch.int8, torch.float32)
            and tuple(numbers.shape) == (outputs, width)
            and tuple(scales_OG.shape) == shape_of_scales(bits, outputs, inputs)
            and told == f"{source} {_checksum(numbers, scales_OG)}"
        )
        return CompactMatrix(bits, inputs, numbers, scales_OG, dtype).restore() if fits else None

    def write(self, key: str, matrix: QuantizedMatrix) -> None:
        """Keep a matrix that was made from `key`. Others see the whole file or none."""
        if not self._writes:
            return
        compact = CompactMatrix.of(matrix)
        numbers, scales_OG = compact.numbers.cpu().contiguous(), compact.scales_OG.cpu()
        told = f"{self._source(key, matrix.bits)} {_checksum(numbers, scales_OG)}"
        data = save({"numbers": numbers, "scales": scales_OG.contiguous()}, {_TOLD: told})
        file = self._file(key, matrix.bits)
        try:
            if not file.parent.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
            _replace(file, data)
        except OSError as error:
            self._writes = False
            logger.warning(
                "quantized weights are not kept in %s: %s; the next start rounds them again",
                file.parent,
                error.strerror or error,
            )

    def remove_abandoned(self) -> None:
        """Remove what processes left that died while they wrote."""
        for file in self._directory.glob("*/*.tmp"):
            try:
                if time.time() - file.stat().st_mtime > _ABANDONED_S:
                    file.unlink()
            except OSError:  # another process was first, or may and this one may not
                continue

    def _file(self, key: str, bits: int) -> Path:
        return self._directory / f"int{bits}" / f"{key}{_SUFFIX}"

    def _source(self, key: str, bits: int) -> str:
        """What tells the tensor `key` from any other, and from itself before it was changed."""
        entry = self._checkpoint.entries[key]
        try:
            stat, sample = entry.file.stat(), sample_of(entry)
        except OSError as error:
            raise CheckpointError(f"{entry.file}: {key} cannot be read: {error}") from error
        told = (_VERSION, bits, key, entry.file.name, stat.st_size, stat.st_mtime_ns)
        placed = (entry.dtype, entry.shape, entry.offset_bytes)
        digest = hashlib.blake2b(repr((told, placed)).encode(), digest_size=16)
        digest.update(sample)
        return digest.hexdigest()


def _replace(file: Path, data: bytes) -> None:
    """Put `data` there at once, or leave what is there; OSError where that cannot be done."""
    partial = file.with_name(f"{file.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        partial.write_bytes(data)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _checksum(numbers: torch.Tensor, scales_OG: torch.Tensor) -> str:
    checksum = zlib.crc32(numbers.numpy().data)
    return f"{zlib.crc32(scales_OG.contiguous().numpy().data, checksum):08x}"
