"""`windrose compress`: what it writes is read by transformers with the published layers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.ranks.engine_build import colocated_engine
from model.config import ModelConfig
from model.generation_config import GenerationDefaults
from model.tokenizer import Tokenizer
from ops.compress.compression import compress
from ops.compress.factorize import Factorized, factorize
from ops.compress.perplexity import perplexity, read_windows
from ops.compress.report import CompressReport
from ops.compress.settings import CompressSettings
from tests.checkpoints import make_checkpoint
from tests.greedy_reference import (
    assert_same,
    generate,
    greedy_requests,
    load_reference,
    make_prompts,
    run_engine,
    tiny_plan,
)
from tests.low_rank import load_low_rank, make_low_rank, tensors_of
from tests.ops.compress_runs import Quiet, parameters

TEXT = "Wie viele Experten gibt es? Eight, and two of them see each token.\n" * 40


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("dense"), shards=3, config_style="v4")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "some.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="module")
def done(
    source: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CompressSettings, CompressReport]:
    """A quarter of all parameters removed, in small shards, with the text."""
    target = tmp_path_factory.mktemp("small") / "deeper" / "target"
    settings = CompressSettings(source, target, ratio=0.25, step=4, text=text, shard_bytes=150_000)
    return settings, compress(settings, Quiet())


def test_it_removes_what_was_asked_and_says_what_is_there(
    done: tuple[CompressSettings, CompressReport],
) -> None:
    settings, report = done
    before, after = parameters(settings.source), parameters(settings.target)
    assert (report.parameters_before, report.parameters_after) == (before, after)
    assert report.parameters_removed == before - after >= 0.25 * before
    assert report.parameters_removed < 0.25 * before + 4 * (64 + 96)  # not a step more
    assert report.parameters_removed == sum(one.parameters_removed for one in report.layers)
    assert len(list(settings.target.glob("*.safetensors"))) > 3

    dense, low = tensors_of(settings.source), tensors_of(settings.target)
    ranks = ModelConfig.from_dir(settings.target).ranks
    for layer in report.layers:
        names = [
            key.removesuffix(".weight")
            for key in dense
            if key.startswith(f"model.layers.{layer.layer}.") and ".experts." in key
        ]
        assert layer.ranks == tuple(sorted(ranks[name] for name in names if name in ranks))
        assert layer.num_dense == len(names) - len(layer.ranks)
        missed = norm = 0.0
        for name in names:
            weight = dense[f"{name}.weight"].double()
            norm += float(weight.square().sum())
            if name in ranks:
                product = low[f"{name}.1.weight"].double() @ low[f"{name}.0.weight"].double()
                missed += float((weight - product).square().sum())
        assert layer.relative_error == pytest.approx(math.sqrt(missed / norm), rel=1e-4)


def test_all_but_the_factors_is_as_it_was(done: tuple[CompressSettings, CompressReport]) -> None:
    settings, _ = done
    dense, low = tensors_of(settings.source), tensors_of(settings.target)
    ranks = ModelConfig.from_dir(settings.target).ranks
    assert ranks and all(".experts." in name for name in ranks)
    kept = {key for key in dense if key.removesuffix(".weight") not in ranks}
    factors = {f"{name}.{index}.weight" for name in ranks for index in (0, 1)}
    assert low.keys() == kept | factors
    assert all(torch.equal(low[key], dense[key]) for key in kept)
    theirs = json.loads((settings.source / "config.json").read_text())
    ours = json.loads((settings.target / "config.json").read_text())
    auto_map = ours.pop("auto_map")
    assert auto_map["AutoModelForCausalLM"].endswith("modeling_mixtral.MixtralForCausalLM")
    assert ours.pop("ranks") == ranks and ours == theirs
    for directory in (settings.source, settings.target):
        assert Tokenizer.from_dir(directory).vocab_size == 512
    assert GenerationDefaults.from_dir(settings.target) == GenerationDefaults.from_dir(
        settings.source
    )
    names = {file.name for file in settings.target.iterdir()}
    assert not [name for name in names if "part" in name or "state" in name]
    index = json.loads((settings.target / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == low.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in low.values())


def test_transformers_computes_the_best_matrices_of_these_ranks(
    done: tuple[CompressSettings, CompressReport], tmp_path: Path
) -> None:
    """Each listed matrix replaced by numpy's own truncated decomposition, in a dense model."""
    settings, _ = done
    make_checkpoint(tmp_path)
    tensors = tensors_of(tmp_path)
    for name, rank in ModelConfig.from_dir(settings.target).ranks.items():
        u, s, v = np.linalg.svd(tensors[f"{name}.weight"].double().numpy(), full_matrices=False)
        best = torch.from_numpy((u[:, :rank] * s[:rank]) @ v[:rank])
        tensors[f"{name}.weight"] = best.float().contiguous()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    ids = torch.tensor([make_prompts(512, (60,))[0]])
    low = load_low_rank(settings.target)
    with torch.inference_mode():
        got, want = low(ids).logits, load_reference(tmp_path)(ids).logits
        torch.testing.assert_close(got, want, atol=1e-3, rtol=0)
        assert (got - load_reference(settings.source)(ids).logits).abs().max() > 0.1

    prompts = make_prompts(512, (20, 3))
    engine = colocated_engine(tiny_plan(settings.target), torch.device("cpu")).engine
    assert_same(
        run_engine(engine, greedy_requests(prompts, 8)), [generate(low, p, 8) for p in prompts]
    )


def test_perplexity_is_transformers(
    done: tuple[CompressSettings, CompressReport], source: Path, text: Path
) -> None:
    _, report = done
    windows = read_windows(text, source)
    assert len(windows.token_ids) > 1 and max(map(len, windows.token_ids)) == 512
    ids = [token for window in windows.token_ids for token in window[1:]]
    assert Tokenizer.from_dir(source).decode(ids).strip() == TEXT.strip()
    model, total = load_reference(source), 0.0
    for window in windows.token_ids:
        row = torch.tensor([window])
        with torch.inference_mode():
            total += float(model(row, labels=row).loss) * (len(window) - 1)
    assert report.perplexity is not None and report.perplexity.tokens == len(ids)
    assert report.perplexity.before == pytest.approx(math.exp(total / len(ids)), rel=1e-4)
    assert report.perplexity.after == perplexity(Path(report.target), windows)
    assert report.perplexity.after != report.perplexity.before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_has_that_rank_already_comes_back(tmp_path: Path, dtype: Any) -> None:
    """Experts multiplied out from factors of rank 12 lose nothing but rounding at rank 12."""
    plain = make_checkpoint(tmp_path / "plain", dtype=dtype)
    names = [key.removesuffix(".weight") for key in tensors_of(plain) if ".experts." in key]
    make_low_rank(plain, dict.fromkeys(names, 12))
    tensors = tensors_of(plain)
    for name in names:
        first, second = (tensors.pop(f"{name}.{index}.weight").float() for index in (0, 1))
        tensors[f"{name}.weight"] = (second @ first).to(getattr(torch, dtype))
    config = json.loads((plain / "config.json").read_text())
    del config["ranks"]
    (plain / "config.json").write_text(json.dumps(config))
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})

    target = tmp_path / "target"
    report = compress(CompressSettings(plain, target, rank=12, layers=(1,)), Quiet())
    assert [one.layer for one in report.layers] == [1]
    assert report.layers[0].relative_error < (1e-5 if dtype == "float32" else 0.01)
    assert report.layers[0].ranks == (12,) * 12
    assert report.perplexity is None
    assert [file.name for file in target.glob("*.safetensors")] == ["model.safetensors"]
    stored = load_file(target / "model.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {f"torch.{dtype}"}
    if dtype == "float32":
        ids = torch.tensor([make_prompts(512, (40,))[0]])
        with torch.inference_mode():
            want = load_reference(plain)(ids).logits
            torch.testing.assert_close(load_low_rank(target)(ids).logits, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("stop_at", [1, 17, 30])
def test_an_interrupted_run_is_taken_up_where_it_stopped(
    done: tuple[CompressSettings, CompressReport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
) -> None:
    finished, report = done
    settings = replace(finished, target=tmp_path / "target")
    made: list[torch.Tensor] = []

    def counted(weight: torch.Tensor, rank: int) -> Factorized:
        made.append(weight)
        return factorize(weight, rank)

    monkeypatch.setattr("ops.compress.compression.factorize", counted)
    with pytest.raises(InterruptedError):
        compress(settings, Quiet(stop_at=stop_at))
    assert not (settings.target / "config.json").exists()
    (part,) = settings.target.glob("*.safetensors.part")
    part.write_bytes(part.read_bytes() + b"and half a tensor")
    with pytest.raises(FileExistsError, match="other settings"):
        compress(replace(settings, ratio=0.2), Quiet())
    again = Quiet()
    repeated = compress(settings, again)
    assert "spectra" not in again.phases
    assert len(made) == sum(len(one.ranks) for one in report.layers)  # each matrix once
    assert repeated.layers == report.layers
    assert {file.name for file in settings.target.iterdir()} == {
        file.name for file in finished.target.iterdir()
    }
    for file in finished.target.iterdir():
        assert (settings.target / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(FileExistsError, match="not overwritten"):
        compress(settings, Quiet())
