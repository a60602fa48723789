"""`windrose compress`: what it says, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ops.cli import main
from ops.compress.compression import compress
from ops.compress.settings import CompressSettings
from tests.bitsandbytes_checkpoints import linear_layers, quantize_checkpoint
from tests.checkpoints import make_checkpoint
from tests.low_rank import make_low_rank, tensors_of
from tests.ops.compress_runs import Quiet, parameters
from tests.raw_checkpoints import write_raw


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("dense"), shards=3, config_style="v4")


def low_rank_source(directory: Path) -> None:
    make_low_rank(make_checkpoint(directory), {"model.layers.0.self_attn.q_proj": 4})


def quantized_source(directory: Path) -> None:
    dense = make_checkpoint(directory.with_name("dense"))
    quantize_checkpoint(dense, directory, "int8", linear_layers)


def raw_source(directory: Path) -> None:
    write_raw(make_checkpoint(directory.with_name("hf")), directory, "safetensors")


def broken_source(directory: Path) -> None:
    tensors = tensors_of(make_checkpoint(directory))
    tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"][5, 6] = torch.inf
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("make", "settings", "told"),
    [
        (lambda path: make_checkpoint(path, experts=0), {"rank": 8}, "dense"),
        (low_rank_source, {"rank": 8}, "compressed already"),
        (quantized_source, {"rank": 8}, "quantized"),
        (raw_source, {"rank": 8}, "`windrose convert` it first"),
        (make_checkpoint, {"rank": 39}, "--rank 39"),
        (make_checkpoint, {"rank": 8, "layers": (1, 2)}, "no layer 2"),
        (make_checkpoint, {"ratio": 0.9}, "cannot be removed"),
        (make_checkpoint, {"remove_params": 10**9}, "1,000,000,000 parameters cannot"),
        (make_checkpoint, {"rank": 8, "text": Path("/nowhere/text")}, "/nowhere/text"),
        (broken_source, {"ratio": 0.1}, "layers.1.block_sparse_moe.experts.3.w2.weight: a weight"),
        (broken_source, {"rank": 8}, "layers.1.block_sparse_moe.experts.3.w2.weight: a weight"),
    ],
)
def test_refusals_say_what_is_wrong(
    tmp_path: Path, make: Callable[[Path], object], settings: dict[str, Any], told: str
) -> None:
    source = tmp_path / "source"
    make(source)
    with pytest.raises(ValueError) as refusal:
        compress(CompressSettings(source, tmp_path / "target", **settings), Quiet())
    assert told in str(refusal.value)
    assert not (tmp_path / "target" / "config.json").exists()


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "target"
    arguments = ["compress", str(source), str(target), "--remove-params", "2e4", "--layers", "0-1"]
    assert main([*arguments, "--rank-step", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters_removed"] == parameters(source) - parameters(target) >= 20_000
    assert report["perplexity"] is None
    assert main([*arguments, "--rank-step", "4"]) == 1
    assert str(target) in capsys.readouterr().err
    assert main(["compress", str(source), str(tmp_path / "b"), "--rank", "8"]) == 0
    out = capsys.readouterr().out
    for part in ("relative error", "perplexity was not measured: no --text", "removed"):
        assert part in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "one of the arguments"),
        (["--rank", "8", "--ratio", "0.1"], "not allowed with"),
        (["--ratio", "1.5"], "'1.5' is not between 0 and 1"),
        (["--remove-params", "2.5"], "'2.5' is not a whole number"),
        (["--rank", "0"], "'0' is not a whole number"),
        (["--rank", "8", "--layers", "1-x"], "'1-x' is no list of layers"),
    ],
)
def test_arguments_at_fault(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(["compress", "a", "b", *arguments])
    assert exit_status.value.code == 2
    assert told in capsys.readouterr().err
