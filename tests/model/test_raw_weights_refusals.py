"""Mistral's own files that cannot be served: refused by file and key."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.config_file import ConfigError
from model.shards import CheckpointError
from tests.model.tiny_raw_checkpoints import LAYOUTS, make_raw, resave
from tests.raw_checkpoints import Layout


class Code:
    """Runs a command where it is unpickled without care."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_with_code_in_it_is_refused_and_nothing_is_run(
    tmp_path: Path, old_format: bool
) -> None:
    _, raw = make_raw(tmp_path, "pth")
    file, trace = raw / "consolidated.00.pth", tmp_path / "it-ran"
    tensors = torch.load(file) | {"output.weight": Code(f"touch {trace}")}
    torch.save(tensors, file, _use_new_zipfile_serialization=not old_format)
    for use in (Checkpoint, ModelConfig.from_dir):
        with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth: ") as refusal:
            use(raw)
        if not old_format:
            assert "nothing of it was run" in str(refusal.value)
            assert "system" in str(refusal.value)
    assert not trace.exists()
    # The file does what is said of it: the same pickle, unpickled without care, leaves its trace.
    torch.load(file, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([torch.zeros(2)], "holds a list; named tensors are needed"),
        ({"a": 3}, "'a' is a int, not a tensor"),
        ({3: torch.zeros(2)}, "3 is a Tensor, not a tensor"),
        ({"a": torch.zeros(2, 3).T}, "a: its elements do not lie in order"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: Any, fault: str) -> None:
    _, raw = make_raw(tmp_path, "pth")
    file = raw / "consolidated.00.pth"
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=fault) as refusal:
        Checkpoint(raw)
    assert str(refusal.value).startswith(f"{file}: ")


@pytest.mark.parametrize("kept", [0, 7, 1000, -100, -1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_cut_short_is_named(tmp_path: Path, layout: Layout, kept: int) -> None:
    _, raw = make_raw(tmp_path, layout)
    file = next(raw.glob("consolidated*"))
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint(raw)
    assert str(refusal.value).startswith(f"{file}: ")


def test_a_place_that_is_none_of_the_archive_s_is_refused(tmp_path: Path) -> None:
    _, raw = make_raw(tmp_path, "pth")
    file = raw / "consolidated.00.pth"
    with zipfile.ZipFile(file) as archive:
        members = {one: archive.read(one) for one in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:  # other gaps than torch's own writer leaves
        for name in sorted(members, reverse=True):
            archive.writestr(name, members[name])
    with pytest.raises(CheckpointError, match=r"not where torch\.save puts it") as refusal:
        Checkpoint(raw)
    assert str(refusal.value).startswith(f"{file}: ")


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    _, raw = make_raw(tmp_path, "pth")
    file = raw / "consolidated.00.pth"
    with zipfile.ZipFile(file) as archive:
        members = {one: archive.read(one) for one in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth: "):
        Checkpoint(raw)


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    _, raw = make_raw(tmp_path, "pth")
    (raw / "consolidated.00.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth: .*older than torch 1\.6"):
        Checkpoint(raw)


def test_a_file_that_is_missing_among_the_numbered_ones_is_named(tmp_path: Path) -> None:
    _, raw = make_raw(tmp_path, "release")
    (raw / "consolidated.03.pt").unlink()
    with pytest.raises(CheckpointError, match=r"consolidated\.03\.pt: missing; consolidated\.07"):
        Checkpoint(raw)


def test_a_last_file_that_is_missing_shows_in_what_it_held(tmp_path: Path) -> None:
    _, raw = make_raw(tmp_path, "release")
    held = list(torch.load(raw / "consolidated.07.pt"))
    (raw / "consolidated.07.pt").unlink()
    with pytest.raises(CheckpointError, match="missing") as refusal:
        Checkpoint(raw).verify(ModelConfig.from_dir(raw))
    assert "do not fit params.json" in str(refusal.value)
    assert any(f"{raw}: {key} (model." in str(refusal.value) for key in held)


def test_a_tensor_in_two_files_is_refused_with_both_names(tmp_path: Path) -> None:
    _, raw = make_raw(tmp_path, "release")
    first = torch.load(raw / "consolidated.00.pt")
    key = next(iter(first))
    resave(raw / "consolidated.05.pt", lambda tensors: tensors.update({key: first[key]}))
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint(raw)
    assert str(refusal.value) == (
        f"{raw / 'consolidated.05.pt'}: {key} is also in {raw / 'consolidated.00.pt'}"
    )


def test_one_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    _, raw = make_raw(tmp_path, "safetensors")
    file = raw / "consolidated.safetensors"
    tensors = load_file(file)
    gate = tensors["layers.0.feed_forward.gate.weight"]
    save_file(tensors | {"layers.0.block_sparse_moe.gate.weight": gate.clone()}, file)
    with pytest.raises(CheckpointError, match=r"feed_forward\.gate\.weight and .*are one tensor"):
        Checkpoint(raw)


@pytest.mark.parametrize(
    ("layout", "key", "shape", "fault"),
    [
        ("pth", "layers.1.attention.wq.weight", (20, 16), "expected shape [24, 16], found"),
        ("pth", "layers.0.feed_forward.experts.2.w2.weight", (24, 16), "expected shape [16, 24]"),
        ("pth", "layers.9.ffn_norm.weight", (16,), "not a tensor of this model"),
        ("pth", "vision_encoder.norm.weight", (16,), "not a tensor of this model"),
        ("release", "layers.1.block_sparse_moe.w2", (72, 24), "expected shape [72, 16] (3 experts"),
    ],
)
def test_a_wrong_shape_is_refused_with_file_and_key(
    tmp_path: Path, layout: Layout, key: str, shape: tuple[int, ...], fault: str
) -> None:
    _, raw = make_raw(tmp_path, layout)
    files = sorted(raw.glob("consolidated*"))
    file = next((one for one in files if key in torch.load(one)), files[0])
    resave(file, lambda tensors: tensors.update({key: torch.zeros(shape)}))
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint(raw).verify(ModelConfig.from_dir(raw))
    assert f"{file}: " in str(refusal.value)
    assert fault in str(refusal.value)
    assert f": {key}" in str(refusal.value)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    _, raw = make_raw(tmp_path, "pth")
    change = {"tok_embeddings.weight": torch.zeros(32, 16, dtype=torch.int8)}
    resave(raw / "consolidated.00.pth", lambda tensors: tensors.update(change))
    with pytest.raises(CheckpointError, match=r"tok_embeddings\.weight: dtype is int8"):
        ModelConfig.from_dir(raw)


def test_params_alone_and_weights_alone_are_refused_by_what_is_missing(tmp_path: Path) -> None:
    _, raw = make_raw(tmp_path, "pth")
    shutil.copytree(raw, tmp_path / "no-params")
    (tmp_path / "no-params" / "params.json").unlink()
    with pytest.raises(ConfigError, match=r"params\.json: cannot be read"):
        ModelConfig.from_dir(tmp_path / "no-params")
    (raw / "consolidated.00.pth").unlink()
    with pytest.raises(CheckpointError, match=r"neither consolidated\.safetensors nor"):
        ModelConfig.from_dir(raw)
