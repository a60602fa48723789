"""Mistral's own files present the very tensors of the Hugging Face checkpoint they stand for."""

from __future__ import annotations

import json
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
from model.fingerprint import weights_fingerprint
from model.shards import CheckpointError
from model.weights import attention_keys, expected_shapes, expert_keys
from tests.checkpoints import make_checkpoint
from tests.raw_checkpoints import Layout, write_raw

TINY: dict[str, Any] = {
    "hidden": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "ffn": 24, "experts": 3,
    "top_k": 2, "vocab": 32, "max_positions": 32768,
}  # fmt: skip
LAYOUTS: tuple[Layout, ...] = ("release", "pth", "safetensors")


def make_raw(directory: Path, layout: Layout, **shape: Any) -> tuple[Path, Path]:
    """A Hugging Face checkpoint, and the same in a raw layout."""
    source = make_checkpoint(directory / "hf", **(TINY | shape))
    return source, write_raw(source, directory / "raw", layout)


def resave(file: Path, change: Any) -> None:
    """Write a file of torch.save again, with `change` applied to its tensors."""
    tensors = torch.load(file)
    change(tensors)
    torch.save(tensors, file)


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


def test_params_alone_and_weights_alone_are_refused_by_what_is_missing(tmp_path: Path) -> None:
    _, raw = make_raw(tmp_path, "pth")
    shutil.copytree(raw, tmp_path / "no-params")
    (tmp_path / "no-params" / "params.json").unlink()
    with pytest.raises(ConfigError, match=r"params\.json: cannot be read"):
        ModelConfig.from_dir(tmp_path / "no-params")
    (raw / "consolidated.00.pth").unlink()
    with pytest.raises(CheckpointError, match=r"neither consolidated\.safetensors nor"):
        ModelConfig.from_dir(raw)


def test_the_fingerprint_follows_weights_and_params(tmp_path: Path) -> None:
    _, raw = make_raw(tmp_path, "release")
    seen = {weights_fingerprint(str(raw), "bfloat16")}
    params = json.loads((raw / "params.json").read_text())
    (raw / "params.json").write_text(json.dumps(params | {"rope_theta": 5.0}))
    seen.add(weights_fingerprint(str(raw), "bfloat16"))
    resave(raw / "consolidated.06.pt", lambda tensors: [t.mul_(2) for t in tensors.values()])
    seen.add(weights_fingerprint(str(raw), "bfloat16"))
    assert len(seen) == 3
