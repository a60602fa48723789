"""Heads other than lm_head: what config.json says of them, and what of them is on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.model_plan import check_checkpoint
from configs.schema import WindroseConfig
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.config_file import ConfigError
from model.head import ModelHead
from model.loading import load_decoder
from model.pooling import MeanSoFar, Pooler
from model.shards import CheckpointError
from model.tokenizer import Tokenizer
from model.weights import expected_shapes
from tests.checkpoints import make_checkpoint

TINY: dict[str, Any] = {"hidden": 16, "heads": 2, "ffn": 24, "experts": 2, "vocab": 32}
CPU = torch.device("cpu")


def made(directory: Path, head: Any, **settings: Any) -> ModelConfig:
    make_checkpoint(directory, **(TINY | settings), head=head)
    config = ModelConfig.from_dir(directory)
    Checkpoint(directory).verify(config)
    return config


def with_config(directory: Path, **changes: Any) -> Path:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return directory


def test_labels_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    labels = {index: f"is {index}" for index in range(11)}
    head = made(tmp_path / "a", "ForSequenceClassification", id2label=labels).head
    assert head.labels == tuple(labels.values())
    assert (head.task, head.architecture) == ("classify", "MixtralForSequenceClassification")
    two = made(tmp_path / "b", "ForSequenceClassification", experts=0, pad_token_id=5).head
    assert (two.labels, two.pad_token_id) == (("LABEL_0", "LABEL_1"), 5)
    assert two.architecture == "MistralForSequenceClassification"
    with_config(tmp_path / "b", num_labels=3)
    assert len(ModelConfig.from_dir(tmp_path / "b").head.labels) == 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"id2label": {"0": "a", "2": "b"}}, "id2label is"),
        ({"id2label": {}}, "id2label is"),
        ({"id2label": {"0": 7}}, "id2label is"),
        ({"num_labels": 0}, "num_labels is 0"),
        ({"problem_type": "guessing"}, "problem_type is 'guessing'"),
        ({"pad_token_id": "x"}, "pad_token_id is 'x'"),
        ({"architectures": ["MixtralForTokenClassification"]}, "only one of MixtralForCausalLM"),
    ],
)
def test_a_config_that_makes_no_sense_names_its_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    made(tmp_path, "ForSequenceClassification")
    with pytest.raises(ConfigError, match=rf"config\.json: .*{message}"):
        ModelConfig.from_dir(with_config(tmp_path, **changes))


def test_a_bare_model_has_keys_without_prefix_and_no_head(tmp_path: Path) -> None:
    config = made(tmp_path, "Model", shards=2)
    checkpoint = Checkpoint(tmp_path)
    stored = {key for file in tmp_path.glob("*.safetensors") for key in load_file(file)}
    assert "norm.weight" in stored and "model.norm.weight" not in stored
    assert checkpoint.entries.keys() == expected_shapes(config).keys()
    assert {key.removeprefix("model.") for key in checkpoint.entries} == stored
    weights = load_decoder(checkpoint, config, torch.float32, CPU)
    assert (weights.head, weights.score_ND) == (None, None)


def test_faults_of_a_bare_model_are_named_as_in_the_file(tmp_path: Path) -> None:
    config = made(tmp_path, "Model")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["norm.weight"]
    tensors["layers.0.input_layernorm.weight"] = torch.zeros(3)
    tensors["extra"] = torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(tmp_path).verify(config)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(": ")[1] for line in lines] == [
        "layers.0.input_layernorm.weight", "norm.weight", "extra",
    ]  # fmt: skip


def test_a_score_of_another_number_of_labels_is_refused(tmp_path: Path) -> None:
    config = made(tmp_path, "ForSequenceClassification")
    weights = load_decoder(Checkpoint(tmp_path), config, torch.bfloat16, CPU)
    assert weights.head is None and weights.score_ND is not None
    assert weights.score_ND.dtype == torch.float32
    with_config(tmp_path, id2label={"0": "a", "1": "b", "2": "c"})
    with pytest.raises(CheckpointError, match=r"score\.weight: expected shape \[3, 16\], found"):
        Checkpoint(tmp_path).verify(ModelConfig.from_dir(tmp_path))


def test_a_causal_checkpoint_under_another_architecture_is_refused(tmp_path: Path) -> None:
    made(tmp_path, "ForCausalLM")
    with_config(tmp_path, architectures=["MixtralModel"])
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: not a tensor of this model"):
        Checkpoint(tmp_path).verify(ModelConfig.from_dir(tmp_path))


def test_pooling_is_for_embeddings_only(tmp_path: Path) -> None:
    made(tmp_path / "classes", "ForSequenceClassification")
    made(tmp_path / "vectors", "Model")
    check_checkpoint(WindroseConfig(model=str(tmp_path / "vectors"), pooling="mean"))
    asked = WindroseConfig(model=str(tmp_path / "classes"), pooling="last")
    with pytest.raises(ValueError, match=r"pooling is 'last', but .* which classifies texts"):
        check_checkpoint(asked)


@pytest.mark.parametrize(
    "problem, labels, want",
    [
        (None, 2, [0.25, 0.75]),
        ("single_label_classification", 2, [0.25, 0.75]),
        ("multi_label_classification", 2, [0.5, 0.75]),
        ("regression", 2, [0.0, np.log(3)]),
        (None, 1, [0.5]),
    ],
)
def test_a_classifier_gives_what_its_problem_asks_for(
    problem: Any, labels: int, want: list[float]
) -> None:
    score_ND = torch.tensor([[0.0, 1.0], [np.log(3), 1.0]], dtype=torch.float32)[:labels]
    pooler = Pooler(ModelHead("MistralForSequenceClassification", problem_type=problem), score_ND)
    assert pooler(torch.tensor([1.0, 0.0])).tolist() == pytest.approx(want)


def test_a_mean_is_taken_in_float32_over_all_chunks() -> None:
    rows_TD = torch.ones(4096, 2, dtype=torch.bfloat16)  # bf16 sums of ones stop at 256
    so_far = None
    for chunk_TD in rows_TD.split(100):
        so_far = MeanSoFar.of(chunk_TD, so_far)
    assert so_far is not None and so_far.mean_D.tolist() == [1.0, 1.0]


def test_eos_behind_a_text_is_the_tokenizers_own_wish(tmp_path: Path) -> None:
    assert not Tokenizer.adds_eos(tmp_path)
    for wish in (True, False, None):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_eos_token": wish}))
        assert Tokenizer.adds_eos(tmp_path) is (wish is True)
