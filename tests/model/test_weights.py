from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralForCausalLM

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.shards import CheckpointError
from model.weights import attention_keys, expected_shapes, expert_keys
from tests.checkpoints import make_checkpoint

TINY: dict[str, Any] = {
    "hidden": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "ffn": 24, "experts": 3,
    "top_k": 2, "vocab": 32,
}  # fmt: skip


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors as safetensors reads them, copied out of the files, which tests write again."""
    tensors: dict[str, torch.Tensor] = {}
    for file in directory.glob("*.safetensors"):
        tensors |= {key: value.clone() for key, value in load_file(file).items()}
    return tensors


def all_experts(config: ModelConfig) -> list[str]:
    return [
        key
        for layer in range(config.num_layers)
        for expert in range(config.num_experts)
        for key in expert_keys(config, layer, expert)
    ]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_names_shapes_and_values_are_those_that_transformers_wrote(
    tmp_path: Path, shards: int, tie: bool, dtype: Any
) -> None:
    directory = make_checkpoint(tmp_path, **TINY, shards=shards, tie=tie, dtype=dtype)
    assert len(list(directory.glob("*.safetensors"))) == shards
    config = ModelConfig.from_dir(directory)
    truth = tensors_of(directory)
    assert expected_shapes(config) == {key: tuple(value.shape) for key, value in truth.items()}

    checkpoint = Checkpoint(directory)
    checkpoint.verify(config)
    keys = attention_keys(config) + all_experts(config)
    assert sorted(keys) == sorted(truth)
    for key in keys:
        tensor = checkpoint.read(key)
        assert tensor.dtype == truth[key].dtype == getattr(torch, config.dtype)
        assert torch.equal(tensor, truth[key])


def test_roles_own_what_transformers_holds_outside_and_inside_its_experts(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, **TINY)
    config = ModelConfig.from_dir(directory)
    model: Any = MixtralForCausalLM.from_pretrained(directory)
    sizes = {name: value.numel() for name, value in model.state_dict().items()}
    inside = sum(size for name, size in sizes.items() if ".experts." in name)
    checkpoint = Checkpoint(directory)
    assert checkpoint.total_bytes(all_experts(config)) == 4 * inside
    assert checkpoint.total_bytes(attention_keys(config)) == 4 * (sum(sizes.values()) - inside)

    w1, w3, w2 = (checkpoint.read(key) for key in expert_keys(config, 1, 2))
    row = torch.randn(1, 16)
    theirs = model.model.layers[1].mlp.experts
    ids, weights = torch.tensor([[2]]), torch.ones(1, 1)
    ours = (torch.nn.functional.silu(row @ w1.T) * (row @ w3.T)) @ w2.T
    torch.testing.assert_close(ours, theirs(row, ids, weights))


def test_tensors_read_are_writable_contiguous_and_outlive_the_files(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, **TINY, shards=2)
    truth = tensors_of(directory)
    read = dict(Checkpoint(directory).read_each(truth))
    for file in directory.iterdir():
        file.write_bytes(b"")
    assert read.keys() == truth.keys()
    for key, tensor in read.items():
        assert tensor.is_contiguous()
        assert torch.equal(tensor, truth[key])
        tensor.zero_()
    mapped = {Path(mapping.path) for mapping in psutil.Process().memory_maps()}
    assert not mapped & set(directory.iterdir())


def test_reading_goes_through_each_file_once_and_tells_the_bytes(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, **TINY, shards=3)
    checkpoint = Checkpoint(directory)
    keys = sorted(checkpoint.entries, key=lambda key: key[::-1])  # an order of no use
    told: list[int] = []
    order = [key for key, _ in checkpoint.read_each(keys, told.append)]
    assert sorted(order) == sorted(keys)
    places = [(checkpoint.entries[key].file, checkpoint.entries[key].offset_bytes) for key in order]
    assert places == sorted(places)
    assert told == [checkpoint.entries[key].size_bytes for key in order]
    assert (
        sum(told)
        == checkpoint.total_bytes(keys)
        == sum(tensor.nbytes for tensor in tensors_of(directory).values())
    )


def edit_tensors(directory: Path, **changes: torch.Tensor | None) -> None:
    """Writes model.safetensors again with some tensors replaced, or dropped where None."""
    tensors: dict[str, torch.Tensor | None] = {**tensors_of(directory), **changes}
    save_file({k: v for k, v in tensors.items() if v is not None}, directory / "model.safetensors")


GATE = "model.layers.1.block_sparse_moe.gate.weight"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model.norm.weight": None}, "model.norm.weight: expected shape [16], missing"),
        ({"lm_head.weight": None}, "lm_head.weight: expected shape [32, 16], missing"),
        ({GATE: torch.zeros(4, 16)}, f"{GATE}: expected shape [3, 16], found [4, 16]"),
        ({GATE: torch.zeros(48)}, f"{GATE}: expected shape [3, 16], found [48]"),
        (
            {"model.layers.2.input_layernorm.weight": torch.zeros(16)},
            "model.layers.2.input_layernorm.weight: not a tensor of this model, found shape [16]",
        ),
        (
            {"model.norm.weight": torch.zeros(16, dtype=torch.int8)},
            "model.norm.weight: dtype is I8; one of F32, BF16, F16 is needed",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_verify_names_file_key_and_shapes(tmp_path: Path, changes: Any, fault: str) -> None:
    directory = make_checkpoint(tmp_path, **TINY)
    edit_tensors(directory, **changes)
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint(directory).verify(ModelConfig.from_dir(directory))
    lines = str(refusal.value).splitlines()
    assert lines == [
        f"{directory}: tensors that do not fit config.json: 1",
        f"  {directory / 'model.safetensors'}: {fault}",
    ]


def test_verify_lists_ten_faults_and_counts_the_rest(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, **TINY)
    config = ModelConfig.from_dir(directory).model_copy(update={"num_experts": 8})
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint(directory).verify(config)
    lines = str(refusal.value).splitlines()
    # Two layers lack five experts of three tensors each, and their gates are too small.
    assert lines[0] == f"{directory}: tensors that do not fit config.json: 32"
    assert len(lines) == 12
    assert lines[-1] == "  and 22 more"


@pytest.mark.parametrize(
    ("tie", "extra"),
    [
        (False, "model.layers.0.self_attn.rotary_emb.inv_freq"),
        (True, "lm_head.weight"),
    ],
)
def test_leftovers_that_change_nothing_are_tolerated(tmp_path: Path, tie: bool, extra: str) -> None:
    directory = make_checkpoint(tmp_path, **TINY, tie=tie)
    edit_tensors(directory, **{extra: torch.zeros(32, 16)})
    config = ModelConfig.from_dir(directory)
    checkpoint = Checkpoint(directory)
    assert extra in checkpoint.entries
    checkpoint.verify(config)
    assert extra not in attention_keys(config)


def test_read_refuses_a_dtype_it_cannot_compute_with(tmp_path: Path) -> None:
    save_file({"a.b": torch.arange(3)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: a\.b: dtype is I64"):
        Checkpoint(tmp_path).read("a.b")


def test_a_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_checkpoint(tmp_path, **TINY))
    for ask in (checkpoint.read, lambda key: checkpoint.total_bytes([key])):
        with pytest.raises(CheckpointError, match=r"model\.safetensors: no\.such is missing"):
            ask("no.such")


def test_a_file_that_shrinks_or_goes_after_opening_is_noticed(tmp_path: Path) -> None:
    file = make_checkpoint(tmp_path, **TINY) / "model.safetensors"
    checkpoint = Checkpoint(tmp_path)
    last = checkpoint.in_file_order(checkpoint.entries)[-1]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: ends within {last}"):
        checkpoint.read(last)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{last} cannot be read"):
        checkpoint.read(last)
