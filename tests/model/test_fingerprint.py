"""Weights are told apart by what they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from model.fingerprint import weights_fingerprint
from model.shards import CheckpointError
from tests.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("old") / "m", hidden=16, ffn=16, layers=1)


def test_the_same_weights_are_the_same_again(old: Path) -> None:
    once = weights_fingerprint(str(old), "float32")
    assert once == weights_fingerprint(str(old), "float32")
    assert once.isalnum(), "it is a part of names, between dashes"


def test_other_weights_in_the_same_place_are_others(old: Path, tmp_path: Path) -> None:
    place = tmp_path / "m"
    shutil.copytree(old, place)
    before = weights_fingerprint(str(place), "float32")
    assert before != weights_fingerprint(str(place), "bfloat16")
    other = make_checkpoint(tmp_path / "other", hidden=16, ffn=16, layers=1, seed=1)
    for file in other.iterdir():
        shutil.copyfile(file, place / file.name)
    assert weights_fingerprint(str(place), "float32") != before


def test_one_tensor_that_has_moved_is_enough(old: Path, tmp_path: Path) -> None:
    place = tmp_path / "m"
    shutil.copytree(old, place)
    before = weights_fingerprint(str(place), "float32")
    file = place / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4 * 16 * 2 :] = bytes(4 * 16 * 2)  # the last tensor's end, all of it or a good part
    file.write_bytes(data)
    assert weights_fingerprint(str(place), "float32") != before


def test_a_missing_file_is_named(old: Path, tmp_path: Path) -> None:
    place = tmp_path / "m"
    shutil.copytree(old, place)
    (place / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        weights_fingerprint(str(place), "float32")
