"""Mistral's own weight files in a directory: which there are, and where each tensor lies."""

from __future__ import annotations

import re
from pathlib import Path

from model.pickled_tensors import read_pickled_header
from model.shards import CheckpointError, TensorEntry, read_header, read_shards, read_weight_map

PARAMS_FILE = "params.json"
_SINGLE_FILE = "consolidated.safetensors"
_INDEX_FILE = "consolidated.safetensors.index.json"
_NUMBERED = re.compile(r"consolidated\.(\d+)\.(pt|pth|safetensors)")
_HUGGING_FACE = ("model.safetensors", "model.safetensors.index.json")


def is_raw(directory: Path) -> bool:
    """Whether a directory is to be read in Mistral's own layout.

    Where there are both, Hugging Face's counts: config.json together with model.safetensors.
    """
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if "config.json" in names and not names.isdisjoint(_HUGGING_FACE):
        return False
    has_weights = not names.isdisjoint((_SINGLE_FILE, _INDEX_FILE)) or any(
        _NUMBERED.fullmatch(name) for name in names
    )
    return has_weights or (PARAMS_FILE in names and "config.json" not in names)


def read_raw_headers(directory: Path) -> dict[str, TensorEntry]:
    """Every tensor by its name in the files, which share them out in any way.

    Raises:
        CheckpointError: no such file, one missing among those that are numbered, one that cannot
            be used, or a tensor that two of them have.
    """
    found: dict[str, TensorEntry] = {}
    index = directory / _INDEX_FILE
    headers = [read_shards(index, read_weight_map(index))] if index.exists() else []
    headers += [read_header_of(file) for file in _weight_files(directory)]
    if not headers:
        raise CheckpointError(
            f"{directory}: {PARAMS_FILE} is here, but neither {_SINGLE_FILE} nor consolidated.00.pt"
            " or .pth"
        )
    for header in headers:
        for key, entry in header.items():
            if key in found:
                raise CheckpointError(f"{entry.file}: {key} is also in {found[key].file}")
            found[key] = entry
    return found


def read_header_of(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one file of either kind."""
    return read_header(file) if file.suffix == ".safetensors" else read_pickled_header(file)


def _weight_files(directory: Path) -> list[Path]:
    """The single file and the numbered ones, these from 0 on without a gap."""
    single = directory / _SINGLE_FILE
    numbered: dict[int, Path] = {}
    for path in sorted(directory.iterdir()):
        if match := _NUMBERED.fullmatch(path.name):
            number = int(match[1])
            if number in numbered:
                raise CheckpointError(f"{path}: {numbered[number].name} has the same number")
            numbered[number] = path
    for number in range(len(numbered)):
        if number not in numbered:
            suffix = next(iter(numbered.values())).suffix
            missing = directory / f"consolidated.{number:02}{suffix}"
            raise CheckpointError(
                f"{missing}: missing; {numbered[max(numbered)].name} says that there is one"
            )
    return ([single] if single.exists() else []) + [numbered[i] for i in sorted(numbered)]
