from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint import Checkpoint
from model.shards import CheckpointError
from tests.checkpoints import write_shards


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint(tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path}: neither model.safetensors nor model.safetensors.index.json here"
    )


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(9) for name in "ab"}, file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="damaged or truncated") as refusal:
        Checkpoint(tmp_path)
    assert str(refusal.value).startswith(f"{file}: ")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tensors = {name: torch.full((2,), float(place)) for place, name in enumerate("abcd")}
    write_shards(tmp_path, tensors, 2)
    return tmp_path


def edit_index(directory: Path, weight_map: Any) -> Path:
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_truncated_shard_is_named(sharded: Path, cut: int) -> None:
    shard = sharded / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="damaged or truncated") as refusal:
        Checkpoint(sharded)
    assert str(refusal.value).startswith(f"{shard}: ")


def test_a_missing_shard_is_named_with_a_key_it_should_hold(sharded: Path) -> None:
    shard = sharded / "model-00002-of-00002.safetensors"
    shard.unlink()
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint(sharded)
    assert str(refusal.value) == (
        f"{shard}: missing; {sharded / 'model.safetensors.index.json'} says it holds c"
    )


def test_a_key_that_its_shard_lacks_is_named(sharded: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    index = edit_index(sharded, {"a": name, "c": name})
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint(sharded)
    assert str(refusal.value) == f"{sharded / name}: lacks c, which {index} says it has"


def test_only_what_the_index_names_counts(sharded: Path) -> None:
    edit_index(sharded, {"b": "model-00001-of-00002.safetensors"})
    checkpoint = Checkpoint(sharded)
    assert list(checkpoint.entries) == ["b"]
    assert checkpoint.read("b").tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "", "..", 3, None])
def test_an_index_cannot_lead_out_of_its_directory(sharded: Path, name: Any) -> None:
    index = edit_index(sharded, {"a": name})
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint(sharded)
    assert str(refusal.value) == f"{index}: weight_map['a'] is {name!r}, not a file name"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}'])
def test_an_index_that_is_none_is_refused(sharded: Path, content: str) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint(sharded)
    assert str(refusal.value).startswith(f"{index}: ")
