"""Matrices stored as factors: read from config.json, checked, held and multiplied by."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.config_file import ConfigError
from model.experts import Expert, ExpertShard, PackedExpert, make_expert
from model.low_rank_experts import LowRankExpert
from model.projection import Factors, project, project_together
from model.shards import CheckpointError
from model.weights import expected_shapes, expert_keys, stored_keys
from ops.bench.floor import decode_step_bytes
from tests.checkpoints import make_checkpoint
from tests.low_rank import make_low_rank, write_ranks

W1 = "model.layers.1.block_sparse_moe.experts.2.w1"
W2 = "model.layers.0.block_sparse_moe.experts.0.w2"
Q = "model.layers.0.self_attn.q_proj"
RANKS = {W1: 16, W2: 5, Q: 8}
SMALL: dict[str, Any] = {"hidden": 16, "head_dim": 4, "ffn": 24, "vocab": 32}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_low_rank(make_checkpoint(tmp_path_factory.mktemp("ranks"), **SMALL), RANKS)


def test_a_listed_matrix_is_two_tensors_and_the_others_are_one(directory: Path) -> None:
    config = ModelConfig.from_dir(directory)
    assert config.ranks == RANKS
    Checkpoint(directory).verify(config)
    shapes = expected_shapes(config)
    assert shapes.keys() == Checkpoint(directory).entries.keys()
    assert (shapes[f"{W1}.0.weight"], shapes[f"{W1}.1.weight"]) == ((16, 16), (24, 16))
    assert (shapes[f"{W2}.0.weight"], shapes[f"{W2}.1.weight"]) == ((5, 24), (16, 5))
    assert f"{W1}.weight" not in shapes
    assert stored_keys(config, expert_keys(config, 1, 2)) == [
        f"{W1}.0.weight",
        f"{W1}.1.weight",
        W1.replace("w1", "w3.weight"),
        W1.replace("w1", "w2.weight"),
    ]


def test_the_configuration_goes_to_other_processes_and_cannot_be_changed(directory: Path) -> None:
    config = ModelConfig.from_dir(directory)
    for copy in (
        pickle.loads(pickle.dumps(config)),
        ModelConfig.model_validate_json(config.model_dump_json()),
    ):
        assert copy == config and hash(copy) == hash(config)
    assert config != config.model_copy(update={"ranks": {}})
    with pytest.raises(TypeError):
        config.ranks[Q] = 4  # type: ignore[index]


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        ([W1], "ranks is"),
        ({W1: 0}, f"ranks['{W1}'] is 0"),
        ({W1: True}, f"ranks['{W1}'] is True"),
        ({W1: "16"}, f"ranks['{W1}'] is '16'"),
        ({W1.replace("layers.1", "layers.2"): 16}, "layers.2"),
        ({W1.replace("experts.2", "experts.4"): 16}, "experts.4"),
        ({f"{W1}.weight": 16}, "w1.weight"),
        ({"lm_head": 16}, "'lm_head'"),
        ({"model.layers.0.block_sparse_moe.gate": 4}, "gate"),
    ],
)
def test_ranks_that_say_nothing_are_refused(tmp_path: Path, ranks: Any, told: str) -> None:
    write_ranks(make_checkpoint(tmp_path, **SMALL), ranks)
    with pytest.raises(ConfigError) as refusal:
        ModelConfig.from_dir(tmp_path)
    assert told in str(refusal.value) and "config.json" in str(refusal.value)


def test_without_ranks_all_is_dense(tmp_path: Path) -> None:
    plain = ModelConfig.from_dir(make_checkpoint(tmp_path, **SMALL))
    nothing: tuple[Any, ...] = ({}, None)
    for value in nothing:
        write_ranks(tmp_path, value)
        assert ModelConfig.from_dir(tmp_path) == plain
    assert not plain.ranks


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({W1: 12}, (f"{W1}.0.weight", "expected shape [12, 16]", "found [16, 16]")),
        ({Q: None}, (f"{Q}.weight: expected shape [16, 16], missing", f"{Q}.0.weight: not a")),
        ({Q.replace("q_", "k_"): 2}, ("k_proj.0.weight: expected shape [2, 16], missing",)),
    ],
)
def test_ranks_that_do_not_fit_the_tensors_are_named(
    directory: Path, tmp_path: Path, change: dict[str, int | None], told: tuple[str, ...]
) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ranks = {name: rank for name, rank in (RANKS | change).items() if rank is not None}
    write_ranks(tmp_path, ranks)
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint(tmp_path).verify(ModelConfig.from_dir(tmp_path))
    for part in told:
        assert part in str(refusal.value)


def test_what_a_step_reads_is_what_is_stored(directory: Path) -> None:
    """With all experts hit every tensor but the embedding is read: of that a row for each row."""
    config = ModelConfig.from_dir(directory)
    stored = sum(torch.Size(shape).numel() for shape in expected_shapes(config).values())
    rows = 10_000
    assert decode_step_bytes(config, rows, torch.float32) == 4 * (stored - 32 * 16 + rows * 16)
    assert json.loads((directory / "config.json").read_text())["ranks"] == RANKS


_Matrix = torch.Tensor | Factors


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / math.sqrt(shape[-1])


def _factors(outputs: int, inputs: int, rank: int, seed: int) -> Factors:
    return Factors(_random(rank, inputs, seed=seed), _random(outputs, rank, seed=seed + 1))


def _halves(matrix: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = matrix.first_RI, matrix.second_OR
    assert isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
    return first, second


def _product(matrix: _Matrix) -> torch.Tensor:
    if isinstance(matrix, Factors):
        first, second = _halves(matrix)
        product: torch.Tensor = second @ first
        return product
    return matrix


def _to(matrix: _Matrix, dtype: torch.dtype) -> _Matrix:
    if isinstance(matrix, Factors):
        first, second = _halves(matrix)
        return Factors(first.to(dtype), second.to(dtype))
    return matrix.to(dtype)


def test_a_projection_is_the_product_and_holds_only_factors() -> None:
    matrices: list[_Matrix] = [
        _factors(40, 24, 6, 1),
        _random(10, 24, seed=3),
        _factors(7, 24, 11, 4),
    ]
    x = _random(5, 24, seed=9)
    want = torch.cat([x @ _product(matrix).T for matrix in matrices], dim=1)
    together = project_together(matrices)
    torch.testing.assert_close(together(x), want)
    assert together.num_bytes == 4 * (6 * (40 + 24) + 10 * 24 + 11 * (7 + 24))
    torch.testing.assert_close(project(matrices[0])(x), want[:, :40])
    assert project(matrices[0]).num_bytes == 4 * 6 * (40 + 24)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.2)])
def test_factors_are_quantized_like_any_matrix(bits: int, most: float) -> None:
    factors, x = _factors(96, 128, 48, 1), _random(50, 128, seed=9)
    exact = x @ _product(factors).T
    low = project(factors, bits)
    assert 0 < (low(x) - exact).norm() / exact.norm() < most
    assert low.num_bytes < (bits / 8 + 0.2) * 48 * (96 + 128)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_layer_may_have_experts_of_all_kinds(bits: int) -> None:
    """In bf16 the dense ones are packed where kernels are; each row has its sum all the same."""
    width, inner, rank = 64, 96, 32
    w1_w3 = [_random(inner, width, seed=seed) for seed in range(6)]
    w2 = [_random(width, inner, seed=seed) for seed in range(6, 9)]
    low_w3 = _factors(inner, width, 10, 16)
    held: dict[int, tuple[_Matrix, _Matrix, _Matrix]] = {
        0: (w1_w3[0], w1_w3[1], w2[0]),
        1: (_factors(inner, width, rank, 10), _factors(inner, width, 8, 12), w2[1]),
        2: (_factors(inner, width, rank, 18), low_w3, _factors(width, inner, 70, 20)),
        4: (w1_w3[2], w1_w3[3], _factors(width, inner, rank, 14)),
        5: (w1_w3[4], w1_w3[5], w2[2]),
    }
    made = {
        e: make_expert(*(_to(matrix, torch.bfloat16) for matrix in matrices), bits=bits)
        for e, matrices in held.items()
    }
    assert isinstance(made[1], Expert) and isinstance(made[4], Expert)
    x = _random(30, width, seed=20).to(torch.bfloat16) * 8
    ids = torch.tensor(list(held))[torch.randint(5, (30, 2), generator=torch.manual_seed(3))]
    ids[::7, 0] = -1
    weights = torch.rand(30, 2, generator=torch.manual_seed(4))

    want = torch.zeros(30, width)
    for row in range(30):
        for expert_id, weight in zip(ids[row].tolist(), weights[row], strict=True):
            if expert_id >= 0:
                gate, up, down = map(_product, held[expert_id])
                x_row = x[row].float()
                want[row] += weight * (down @ (F.silu(gate @ x_row) * (up @ x_row)))

    shard = ExpertShard({(3, 1): made[1]})  # then others come, one after another
    for expert_id in (0, 4, 2, 5):
        shard.add(ExpertShard({(3, expert_id): made[expert_id]}))
    got = shard.forward(3, x, ids, weights).float()
    assert (got - want).norm() / want.norm() < {16: 0.01, 8: 0.02, 4: 0.25}[bits]
    assert shard.num_bytes == sum(expert.num_bytes for expert in made.values())

    for gone in (1, 2, 4):
        shard.remove([(3, gone)])
        kept = ~torch.isin(ids, torch.tensor(sorted({0, 1, 2, 4, 5} - {e for _, e in shard.held})))
        rest = shard.forward(3, x, ids.masked_fill(~kept, -1), weights).float()
        alone = kept.all(dim=1)
        torch.testing.assert_close(rest[alone], got[alone], atol=2**-8, rtol=2**-8)
        for missing in (gone, 3, 9):
            with pytest.raises(KeyError, match=str(missing)):
                shard.forward(3, x[:1], torch.tensor([[0, missing]]), weights[:1])
    kinds = {type(expert) for expert in made.values()}
    assert kinds in ({Expert}, {Expert, PackedExpert, LowRankExpert})
