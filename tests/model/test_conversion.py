"""Conversion of Mistral's own files: what transformers loads, what is written, and refusals."""

from __future__ import annotations

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.conversion import ConversionError, convert, plan_conversion
from model.hugging_face_files import write_json
from model.safetensors_writing import plan_files
from model.shards import CheckpointError, TensorEntry
from model.tokenizer import Tokenizer
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import load_reference
from tests.model.conversion_runs import INDEX, SHARD_BYTES, ignore, run
from tests.raw_checkpoints import Layout, write_raw

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("hf"), max_positions=32768)


@pytest.fixture(scope="module")
def raw(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(mixtral, tmp_path_factory.mktemp("raw"), "release")


@pytest.mark.parametrize("layout", ["release", "safetensors"])
@pytest.mark.parametrize("shard_bytes", [1, SHARD_BYTES, 10**9])
def test_the_result_is_the_hugging_face_checkpoint(
    mixtral: Path, tmp_path: Path, layout: Layout, shard_bytes: int
) -> None:
    source, target = write_raw(mixtral, tmp_path / "raw", layout), tmp_path / "new" / "hf"
    counts: list[int] = []
    plan = plan_conversion(source, target, shard_bytes)
    assert convert(plan, counts.append, ignore) == 0
    truth = load_file(mixtral / "model.safetensors")
    assert sum(counts) == plan.total_bytes == sum(one.nbytes for one in truth.values())
    index = json.loads((target / INDEX).read_text())
    assert index["metadata"]["total_size"] == plan.total_bytes
    assert sorted(index["weight_map"]) == sorted(truth)
    files = sorted(target.glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))
    ]
    for file in files:
        with safe_open(file, framework="pt") as opened:
            keys = list(opened.keys())
            sizes = [opened.get_tensor(key).nbytes for key in keys]
            assert all(torch.equal(opened.get_tensor(key), truth[key]) for key in keys)
        assert len(keys) == 1 or sum(sizes) <= shard_bytes
        assert all(index["weight_map"][key] == file.name for key in keys)
    names = {path.name for path in target.iterdir()} - {file.name for file in files}
    assert names == {"config.json", "tokenizer.model", *TOKENIZER_FILES, INDEX}
    config = ModelConfig.from_dir(target)
    assert config == ModelConfig.from_dir(mixtral)
    Checkpoint(target).verify(config)


@pytest.mark.parametrize("experts", [4, 0])
def test_transformers_loads_it_and_gives_the_same_logits(tmp_path: Path, experts: int) -> None:
    source = make_checkpoint(tmp_path / "hf", experts=experts, sliding_window=7, head_dim=24)
    target = tmp_path / "converted"
    run(write_raw(source, tmp_path / "raw", "pth"), target)
    ids = torch.randint(3, 512, (2, 33), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        want, got = (load_reference(one)(ids).logits for one in (source, target))
    assert torch.equal(got, want)
    tokenizer, ours = AutoTokenizer.from_pretrained(target), Tokenizer.from_dir(target)
    for text in ("What is a wind rose?", " two  spaces", "été\n\n日本"):
        assert tokenizer(text)["input_ids"] == ours.encode(text, add_bos=True)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (ours.bos_id, ours.eos_id)


def test_tensors_of_several_widths_lie_aligned(raw: Path, tmp_path: Path) -> None:
    mixed, target = tmp_path / "raw", tmp_path / "converted"
    shutil.copytree(raw, mixed)
    for file in mixed.glob("*.pt"):
        tensors = torch.load(file)
        torch.save({k: v.bfloat16() if "w" in k[-9:-6] else v for k, v in tensors.items()}, file)
    run(mixed, target)
    want, got = Checkpoint(mixed), Checkpoint(target)
    assert {entry.dtype for entry in got.entries.values()} == {"F32", "BF16"}
    for key, entry in got.entries.items():
        assert entry.offset_bytes % want.read(key).element_size() == 0
        assert torch.equal(got.read(key), want.read(key))


def test_the_index_is_written_when_all_else_is_there(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "converted"
    seen: list[str] = []

    def spy(file: Path, values: dict[str, Any]) -> None:
        seen.append(file.name)
        names = {path.name for path in target.iterdir()}
        assert {"config.json", "tokenizer.model", *TOKENIZER_FILES} <= names
        assert set(values["weight_map"].values()) <= names
        write_json(file, values)

    monkeypatch.setattr("model.conversion.write_json", spy)
    run(raw, target)
    assert seen == [INDEX]


def test_what_the_disk_changed_is_noticed_and_gets_no_name(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "converted"
    fsync = os.fsync

    def damage(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.name.startswith("model-00002"):
            with path.open("r+b") as file:
                file.seek(-5, os.SEEK_END)
                file.write(b"\x55")

    monkeypatch.setattr("os.fsync", damage)
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-\d+\.safetensors\.partial: .* was r"
    ):
        run(raw, target)
    assert [path.name[:11] for path in target.glob("*.safetensors")] == ["model-00001"]


def test_nothing_that_is_there_is_overwritten(raw: Path, mixtral: Path, tmp_path: Path) -> None:
    target = tmp_path / "converted"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ConversionError, match="not empty, and nothing in it is overwritten"):
        run(raw, target)
    (target / "notes.txt").unlink()
    run(raw, target)
    before = {path: path.read_bytes() for path in target.iterdir()}
    for again in (target, raw):
        with pytest.raises(ConversionError, match="not empty"):
            run(raw, again)
    assert {path: path.read_bytes() for path in target.iterdir()} == before
    with pytest.raises(ConversionError, match="not a directory"):
        run(raw, mixtral / "config.json")


def test_a_disk_without_room_is_told_before_anything_is_written(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    with pytest.raises(ConversionError, match=r"0\.0 GB are free there"):
        run(raw, tmp_path / "converted")
    assert not list((tmp_path / "converted").glob("model-*"))


def test_sources_that_cannot_be_converted_are_named(
    raw: Path, mixtral: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match="no such directory"):
        run(tmp_path / "nowhere", tmp_path / "converted")
    with pytest.raises(ConversionError, match="not in Mistral's own layout"):
        run(mixtral, tmp_path / "converted")
    broken = tmp_path / "broken"
    shutil.copytree(raw, broken)
    (broken / "consolidated.07.pt").unlink()
    with pytest.raises(CheckpointError, match="do not fit params"):
        run(broken, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=40), most=st.integers(1, 80))
def test_tensors_are_shared_out_in_order_and_within_bounds(sizes: list[int], most: int) -> None:
    entries = [
        (f"t{i}", TensorEntry(Path("f"), "BF16", (size,), 0, 2 * size))
        for i, size in enumerate(sizes)
    ]
    files = plan_files(entries, 2 * most)
    assert [key for file in files for key in file.keys] == [key for key, _ in entries]
    for file, following in pairwise(files):
        assert file.data_bytes <= 2 * most or len(file.tensors) == 1
        assert file.data_bytes + following.tensors[0][3] > 2 * most, "it would have had room"
    assert len({file.name for file in files}) == len(files)
