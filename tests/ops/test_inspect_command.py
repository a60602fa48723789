"""`windrose inspect`: what it prints is what the model's sizes say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.loading import load_experts
from model.model_sizes import count_parameters, kv_token_bytes, role_bytes, topologies
from ops.cli import main
from tests.bitsandbytes_checkpoints import quantize_checkpoint
from tests.checkpoints import make_checkpoint
from tests.raw_checkpoints import write_raw

MIB = 1 << 20


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("hf"), hidden=128, ffn=1024, experts=5, dtype="bfloat16"
    )


@pytest.fixture(scope="module")
def raw(hugging_face: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(hugging_face, tmp_path_factory.mktemp("raw"), "release")


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["inspect", *argv]) == 0
    return capsys.readouterr().out


def test_json_has_all_of_it(
    hugging_face: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [
        json.loads(shown(capsys, str(one), "--memory-per-device", "8MiB", "--json"))
        for one in (hugging_face, raw)
    ]
    config = ModelConfig.from_dir(hugging_face)
    parameters = count_parameters(config)
    body: dict[str, Any] = told[0]
    assert body["architecture"] == "MixtralForCausalLM"
    assert body["stored_bytes"] == 2 * body["parameters"]["total"] == 2 * parameters.total
    assert body["parameters"]["active"] == parameters.active
    assert body["stored_dtypes"] == {"BF16": sum(body["stored_dtypes"].values())}
    assert body["kv_bytes_per_token"] == kv_token_bytes(config, "bfloat16")
    for name, bits in (("none", 16), ("int8", 8), ("int4", 4)):
        sizes = role_bytes(config, "bfloat16", bits)
        assert body["role_bytes"][name] == {
            "attention": sizes.attention,
            "expert": sizes.expert,
            "by_expert": list(sizes.by_expert),
            "all_experts": sizes.all_experts,
        }
    plain = body["topologies"][0]
    assert (plain["memory_per_device_bytes"], plain["quantization"]) == (8 * MIB, "none")
    assert [one["fits"] for one in plain["expert_actors"]] == [
        fit.fits for fit in topologies(config, "bfloat16", 8 * MIB, role_bytes(config, "bfloat16"))
    ]
    # Both layouts are the same model; the files are others.
    assert (told[0].pop("layout"), told[1].pop("layout")) == ("Hugging Face", "Mistral's own")
    assert (told[0].pop("files"), told[1].pop("files")) == (1, 8)
    for one in told:
        del one["model"], one["config"]["max_position_embeddings"]
    assert told[0] == told[1]


def test_people_get_tables(hugging_face: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, str(hugging_face), "--memory-per-device", "8MiB")
    rows = {
        cells[0]: cells[1:]
        for line in out.splitlines()
        if len(cells := re.split(r"\s{2,}", line.strip())) > 1
    }
    assert rows["architecture"] == ["MixtralForCausalLM"]
    assert rows["feed-forward"] == ["width 1024, 5 experts, top-2"]
    assert rows["the largest expert of a layer"][0] == "768.0 KiB"
    assert rows["all experts"][0] == "7.5 MiB"
    config = ModelConfig.from_dir(hugging_face)
    fits = [
        fit
        for fit in topologies(config, "bfloat16", 8 * MIB, role_bytes(config, "bfloat16"))
        if fit.fits
    ]
    assert [fit.num_expert for fit in fits] == [2, 3, 4, 5]
    assert rows["8.0 MiB"] == ["bfloat16", "2-5", "-", f"{fits[0].kv_tokens:,}"]
    assert rows["int4"][0].startswith("0-5")


def test_a_checkpoint_that_cannot_be_served_is_refused(
    hugging_face: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tmp_path / "nowhere")]) == 1
    assert "nowhere: no such directory" in capsys.readouterr().err
    config = json.loads((hugging_face / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(tmp_path)]) == 1
    assert "neither model.safetensors nor" in capsys.readouterr().err


def test_what_is_stored_in_few_bits_is_counted_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = make_checkpoint(tmp_path / "dense", hidden=64, ffn=128, experts=2)
    few = quantize_checkpoint(dense, tmp_path / "few", "nf4")
    body = json.loads(shown(capsys, str(few), "--json", "--memory-per-device", "8MiB"))
    assert list(body["role_bytes"]) == ["none"]
    config, checkpoint = ModelConfig.from_dir(few), Checkpoint(few)
    held = load_experts(
        checkpoint, config, [(0, 0), (1, 0)], torch.float32, torch.device("cpu")
    ).num_bytes
    told = body["role_bytes"]["none"]["by_expert"][0]
    assert 0.9 * held < told < 1.1 * held  # on disk a state is some text more
    assert "as stored" in shown(capsys, str(few))
