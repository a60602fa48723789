"""Mistral's own files present the very tensors of the Hugging Face checkpoint they stand for."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.config_file import ConfigError
from model.fingerprint import weights_fingerprint
from model.weights import attention_keys, expected_shapes, expert_keys
from tests.checkpoints import make_checkpoint
from tests.model.tiny_raw_checkpoints import LAYOUTS, TINY, make_raw, resave
from tests.raw_checkpoints import Layout, write_raw


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("experts", [3, 0])
def test_every_tensor_is_that_of_the_hugging_face_checkpoint(
    tmp_path: Path, layout: Layout, dtype: Any, experts: int
) -> None:
    source, raw = make_raw(tmp_path, layout, dtype=dtype, experts=experts, sliding_window=64)
    config = ModelConfig.from_dir(raw)
    assert config == ModelConfig.from_dir(source)
    truth = load_file(source / "model.safetensors")
    checkpoint = Checkpoint(raw)
    checkpoint.verify(config)
    assert sorted(checkpoint.entries) == sorted(truth)
    told: list[int] = []
    for key, tensor in checkpoint.read_each(truth, told.append):
        assert tensor.is_contiguous()
        assert tensor.dtype == truth[key].dtype
        assert torch.equal(tensor, truth[key]), key
    assert sum(told) == checkpoint.total_bytes(truth) == sum(t.nbytes for t in truth.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_role_reads_its_own_bytes_and_no_others(tmp_path: Path, layout: Layout) -> None:
    source, raw = make_raw(tmp_path, layout)
    config = ModelConfig.from_dir(raw)
    checkpoint = Checkpoint(raw)
    one = [key for layer in range(2) for key in expert_keys(config, layer, 1)]
    whole = sum(tensor.nbytes for tensor in load_file(source / "model.safetensors").values())
    assert checkpoint.total_bytes(one) == 2 * 3 * 16 * 24 * 4
    assert checkpoint.total_bytes(attention_keys(config)) == whole - 3 * 2 * 3 * 16 * 24 * 4
    # What lies outside the ranges it names is never looked at: bytes of other experts may change.
    want = {key: checkpoint.read(key) for key in one}
    spared = [(checkpoint.entries[key].file, checkpoint.entries[key].offset_bytes) for key in one]
    for key, entry in checkpoint.entries.items():
        if key not in one:
            assert (entry.file, entry.offset_bytes) not in spared
            with entry.file.open("r+b") as file:
                file.seek(entry.offset_bytes)
                file.write(b"\x7f" * entry.size_bytes)
    for key, tensor in want.items():
        assert torch.equal(checkpoint.read(key), tensor)


def test_a_tied_head_needs_no_output_weight(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "hf", **TINY, tie=True)
    raw = write_raw(source, tmp_path / "raw", "safetensors")
    params = json.loads((raw / "params.json").read_text())
    (raw / "params.json").write_text(json.dumps(params | {"tied_embeddings": True}))
    config = ModelConfig.from_dir(raw)
    assert config.tie_word_embeddings
    Checkpoint(raw).verify(config)


def test_one_storage_shared_by_several_tensors_is_read_at_the_right_places(tmp_path: Path) -> None:
    source, raw = make_raw(tmp_path, "pth")
    truth = Checkpoint(source)

    def share(tensors: dict[str, torch.Tensor]) -> None:
        flat = torch.cat([one.reshape(-1) for one in tensors.values()])
        start = 0
        for key, one in tensors.items():
            tensors[key] = flat[start : start + one.numel()].view(one.shape)
            start += one.numel()

    resave(raw / "consolidated.00.pth", share)
    checkpoint = Checkpoint(raw)
    for key in truth.entries:
        assert torch.equal(checkpoint.read(key), truth.read(key)), key


def test_files_of_older_versions_of_torch_are_read(tmp_path: Path) -> None:
    source, raw = make_raw(tmp_path, "pth")
    file = raw / "consolidated.00.pth"
    with zipfile.ZipFile(file) as archive:
        members = {one: archive.read(one) for one in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        # They have no such records, by which newer ones work out where tensors lie.
        for name in sorted(members, reverse=True):
            if not name.endswith((".format_version", ".storage_alignment")):
                archive.writestr(name, members[name])
    truth, checkpoint = Checkpoint(source), Checkpoint(raw)
    assert all(torch.equal(checkpoint.read(key), truth.read(key)) for key in truth.entries)


def test_where_both_layouts_lie_together_hugging_face_s_counts(tmp_path: Path) -> None:
    source, raw = make_raw(tmp_path, "safetensors")
    for file in source.iterdir():
        shutil.copyfile(file, raw / file.name)
    (raw / "consolidated.safetensors").write_bytes(b"not looked at")
    (raw / "params.json").write_text("nor this")
    config = ModelConfig.from_dir(raw)
    assert config == ModelConfig.from_dir(source)
    Checkpoint(raw).verify(config)
    # Without the weights of that layout, raw ones are read, whatever config.json says.
    (raw / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"params\.json: not JSON"):
        ModelConfig.from_dir(raw)


def test_raw_weights_beside_a_config_json_need_no_params(tmp_path: Path) -> None:
    source, raw = make_raw(tmp_path, "release")
    (raw / "params.json").unlink()
    shutil.copyfile(source / "config.json", raw / "config.json")
    config = ModelConfig.from_dir(raw)
    Checkpoint(raw).verify(config)
    assert sorted(Checkpoint(raw).entries) == sorted(expected_shapes(config))


def test_the_fingerprint_follows_weights_and_params(tmp_path: Path) -> None:
    _, raw = make_raw(tmp_path, "release")
    seen = {weights_fingerprint(str(raw), "bfloat16")}
    params = json.loads((raw / "params.json").read_text())
    (raw / "params.json").write_text(json.dumps(params | {"rope_theta": 5.0}))
    seen.add(weights_fingerprint(str(raw), "bfloat16"))
    resave(raw / "consolidated.06.pt", lambda tensors: [t.mul_(2) for t in tensors.values()])
    seen.add(weights_fingerprint(str(raw), "bfloat16"))
    assert len(seen) == 3
