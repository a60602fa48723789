"""Where each tensor of a file that torch.save wrote lies, from its pickle and zip directory alone.

The pickle is read by torch's restricted unpickler (weights_only), which runs no code of the
file's, onto the meta device: no tensor's bytes are read or mapped, and a role later reads its own
as it does from safetensors. Mapping the file would count all of it against the machine's memory.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.shards import CheckpointError, TensorEntry

if TYPE_CHECKING:
    import torch

# Torch's names to safetensors'; any other dtype is shown as torch has it, and refused on reading.
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_LOCAL_HEADER_BYTES = 30
_DATA = "data"  # the folder of the archive that holds storages


def read_pickled_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one file.

    Raises:
        CheckpointError: absent, truncated, of the format before torch 1.6, with code or anything
            but named tensors in it, or a tensor whose elements do not lie in order.
    """
    storages = _read_storages(file)
    tensors = _read_pickle(file)
    return {key: _entry(file, key, tensor, storages) for key, tensor in tensors.items()}


def _read_pickle(file: Path) -> dict[str, torch.Tensor]:
    """The pickled dictionary, its tensors without data."""
    import torch  # not at the top: only files of this kind need it

    try:
        loaded = torch.load(file, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: holds more than tensors, and nothing of it was run: {_reason(error)}"
        ) from None
    except (RuntimeError, OSError, ValueError, LookupError, AssertionError, EOFError) as error:
        raise CheckpointError(f"{file}: damaged or truncated: {_reason(error)}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file}: holds a {type(loaded).__name__}; named tensors are needed")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{file}: {key!r} is a {type(value).__name__}, not a tensor")
    return loaded


def _entry(file: Path, key: str, tensor: torch.Tensor, storages: dict[int, int]) -> TensorEntry:
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != _strided() or not tensor.is_contiguous():
        raise CheckpointError(f"{file}: {key}: its elements do not lie in order")
    start: int | None = tensor.untyped_storage()._checkpoint_offset
    size_bytes = tensor.numel() * tensor.element_size()
    skipped_bytes = int(tensor.storage_offset()) * tensor.element_size()
    # torch works the place out from the sizes before it, which only its own writer keeps to.
    if start is None or storages.get(start, -1) < skipped_bytes + size_bytes:
        raise CheckpointError(f"{file}: {key}: not where torch.save puts it")
    return TensorEntry(
        file=file,
        dtype=_DTYPES.get(name, name),
        shape=tuple(tensor.shape),
        offset_bytes=start + skipped_bytes,
        size_bytes=size_bytes,
    )


def _strided() -> Any:
    import torch

    return torch.strided


def _read_storages(file: Path) -> dict[int, int]:
    """Where the stored data begins in the file, and how many bytes it has there."""
    try:
        with zipfile.ZipFile(file) as archive, file.open("rb") as raw:
            found = {}
            for member in archive.infolist():
                if _DATA in member.filename.split("/") and member.compress_type == 0:
                    raw.seek(member.header_offset)
                    header = raw.read(_LOCAL_HEADER_BYTES)
                    lengths = sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
                    start = member.header_offset + _LOCAL_HEADER_BYTES + lengths
                    found[start] = member.file_size
            return found
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{file}: damaged, truncated or older than torch 1.6: {error}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def _reason(error: Exception) -> str:
    """The line of torch's message that tells what was wrong, without advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or "nsupported" in line]
    return next(iter(telling or lines), type(error).__name__)
