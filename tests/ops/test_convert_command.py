"""`windrose convert`: what it says, and how it ends."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from ops.cli import main
from ops.model_flags import size_bytes
from tests.checkpoints import make_checkpoint
from tests.raw_checkpoints import write_raw


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = make_checkpoint(tmp_path_factory.mktemp("hf"), hidden=16, ffn=24, vocab=32)
    return write_raw(source, tmp_path_factory.mktemp("raw"), "release")


def test_it_converts_and_sums_up(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "hf"
    assert main(["convert", str(raw), str(target), "--max-shard-size", "20KB"]) == 0
    Checkpoint(target).verify(ModelConfig.from_dir(target))
    lines = capsys.readouterr().out.splitlines()
    shards = len(list(target.glob("*.safetensors")))
    assert shards > 2
    assert lines == [
        f"windrose convert: {target}: 41 tensors, 0.00 GB in {shards} shards",
        f"windrose convert: {raw} has no tokenizer.model; serving needs one",
    ]
    assert main(["convert", str(raw), str(target)]) == 1
    assert capsys.readouterr().err == (
        f"windrose convert: {target}: not empty, and nothing in it is overwritten\n"
    )


def test_ctrl_c_says_how_to_go_on(
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("model.conversion.convert", interrupt)
    assert main(["convert", str(raw), str(tmp_path / "hf")]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("5GB", 5 * 10**9),
        ("512MiB", 2**29),
        ("1.5g", 1_500_000_000),
        ("24 GiB", 24 << 30),
    ],
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "GB", "-1GB", "5 parsecs", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size"):
        size_bytes(text)
