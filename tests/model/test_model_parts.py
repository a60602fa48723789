"""Each part of the model alone, against transformers' module of the same name or plain float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import (
    MixtralExperts,
    MixtralRMSNorm,
    MixtralRotaryEmbedding,
    MixtralTopKRouter,
    apply_rotary_pos_emb,
)

from model.expert_load import ExpertLoad
from model.experts import Expert, ExpertShard
from model.gate import Gate
from model.linear import Linear
from model.norm import RMSNorm
from model.rope import Rope, rotate

CPU = torch.device("cpu")
# The spacing of numbers from 1 to 2: an error of more than a few of them is no rounding error.
UNIT = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 8, 33, 257, 600])
def test_linear_is_the_product_in_float64_but_for_rounding(rows: int, dtype: torch.dtype) -> None:
    weight, x = randn(80, 48, seed=1, dtype=dtype), randn(rows, 48, seed=2, dtype=dtype)
    exact = x.double() @ weight.double().T
    linear = Linear(weight.clone())
    y = linear(x)
    assert (y.dtype, tuple(y.shape)) == (dtype, (rows, 80))
    error = (y.double() - exact).abs()
    # Sums of 48 products in fp32, rounded once to the dtype: half a unit of the result, and of
    # the sums' own magnitude about as many fp32 units as there are terms.
    magnitude = x.double().abs() @ weight.double().abs().T
    assert (error <= 0.51 * UNIT[dtype] * exact.abs() + 48 * 2.0**-24 * magnitude).all()
    assert (linear.in_features, linear.out_features) == (48, 80)
    assert linear.num_bytes == 80 * 48 * dtype.itemsize


@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (31, 1), (129, 65), (320, 512)])
def test_linear_takes_any_size(shape: tuple[int, int]) -> None:
    weight, x = randn(*shape, seed=3), randn(5, shape[1], seed=4)
    exact = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(Linear(weight)(x), exact, rtol=1e-5, atol=1e-4)


def test_linear_takes_rows_that_do_not_lie_side_by_side() -> None:
    weight, wide = randn(24, 16, seed=5), randn(9, 40, seed=6)
    torch.testing.assert_close(Linear(weight)(wide[:, 8:24]), wide[:, 8:24] @ weight.T)


def test_the_packed_weight_does_not_follow_its_source() -> None:
    weight, x = randn(8, 8, seed=7), torch.eye(8)
    linear, before = Linear(weight.clone()), weight.clone()
    torch.testing.assert_close(linear(x), before.T, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_norm_is_transformers(dtype: torch.dtype, eps: float) -> None:
    reference: Any = MixtralRMSNorm(64, eps=eps)
    weight = randn(64, seed=8, dtype=dtype)
    reference.weight.data = weight.clone()
    x = randn(37, 64, seed=9, dtype=dtype) * torch.logspace(-3, 2, 37)[:, None].to(dtype)
    before = x.clone()
    got = RMSNorm(weight, eps)(x)
    torch.testing.assert_close(got, reference(x).detach(), rtol=2 * UNIT[dtype], atol=0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [2, 16, 128])
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_rope_is_transformers(head_dim: int, theta: float, dtype: torch.dtype) -> None:
    config = MixtralConfig(
        head_dim=head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        max_position_embeddings=4096,
    )
    positions = torch.tensor([0, 1, 2, 17, 1000, 4095, 5])
    x = randn(7, 3, head_dim, seed=10, dtype=dtype)
    reference: Any = MixtralRotaryEmbedding(config)
    cos, sin = reference(x, positions[None])
    want, _ = apply_rotary_pos_emb(x[None], x[None], cos, sin, unsqueeze_dim=2)
    rope = Rope(head_dim, theta, 4096, dtype, CPU)
    first, largest = x[0].clone(), float(x.abs().max())
    got = rotate(x, *rope.tables(positions))
    torch.testing.assert_close(got, want[0], rtol=0, atol=3 * UNIT[dtype] * largest)
    assert torch.equal(got[0], first)


GATES = [(1, 1), (2, 1), (2, 2), (5, 1), (5, 3), (8, 2), (8, 8), (64, 6)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("experts", "top_k"), GATES)
def test_gate_is_transformers_router(experts: int, top_k: int, dtype: torch.dtype) -> None:
    reference: Any = MixtralTopKRouter(
        MixtralConfig(hidden_size=32, num_local_experts=experts, num_experts_per_tok=top_k)
    )
    weight, x = randn(experts, 32, seed=11, dtype=dtype), randn(50, 32, seed=12, dtype=dtype)
    reference.weight.data = weight.clone()
    _, want_weights, want_ids = reference(x)
    ids, weights = Gate(weight.clone(), top_k)(x)
    assert (ids.dtype, weights.dtype) == (torch.int64, torch.float32)
    torch.testing.assert_close(weights.sum(1), torch.ones(50), rtol=0, atol=1e-6)
    # Equal logits (they happen in half precision) may be told apart either way.
    logits = F.linear(x, weight).float()
    chosen, want_chosen = logits.gather(1, ids), logits.gather(1, want_ids)
    torch.testing.assert_close(chosen, want_chosen, rtol=4 * UNIT[dtype], atol=4 * UNIT[dtype])
    same = (ids == want_ids).all(1)
    assert same.float().mean() > 0.85
    assert all(len(set(row)) == top_k for row in ids.tolist())
    atol = 1e-5 if dtype == torch.float32 else 16 * UNIT[dtype]
    torch.testing.assert_close(weights[same], want_weights[same].detach(), rtol=0, atol=atol)


def reference_experts(experts: int, top_k: int, dtype: torch.dtype, layers: int) -> list[Any]:
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=40,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
    )
    modules: list[Any] = []
    for layer in range(layers):
        module: Any = MixtralExperts(config)
        scale = 32**-0.5
        module.gate_up_proj.data = randn(experts, 80, 32, seed=20 + layer, dtype=dtype) * scale
        module.down_proj.data = randn(experts, 32, 40, seed=30 + layer, dtype=dtype) * scale
        modules.append(module)
    return modules


def shard_of(modules: list[Any], held: list[tuple[int, int]] | None = None) -> ExpertShard:
    """The same experts in a shard: all of them, or the (layer, expert) pairs in `held`."""
    experts = {}
    for layer, module in enumerate(modules):
        for expert in range(module.num_experts):
            if held is None or (layer, expert) in held:
                w1, w3 = module.gate_up_proj.data[expert].chunk(2)
                experts[layer, expert] = Expert(w1, w3, module.down_proj.data[expert])
    return ExpertShard(experts)


def routing(rows: int, experts: int, top_k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    logits = randn(rows, experts, seed=seed)
    values, ids = logits.topk(top_k)
    return ids, values.softmax(-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (4, 2), (5, 3), (8, 1), (8, 8)])
@pytest.mark.parametrize("rows", [1, 2, 61])
def test_a_shard_of_all_experts_is_transformers_block(
    rows: int, experts: int, top_k: int, dtype: torch.dtype
) -> None:
    modules = reference_experts(experts, top_k, dtype, layers=2)
    shard = shard_of(modules)
    x = randn(rows, 32, seed=13, dtype=dtype)
    ids, weights = routing(rows, experts, top_k, seed=14)
    for layer, module in enumerate(modules):
        before = x.clone()
        got = shard.forward(layer, x, ids, weights)
        exact: Any = module.double()(x.double(), ids, weights.double())
        # transformers' own experts_implementation may differ in the order of sums only.
        atol = {torch.float32: 2e-6, torch.bfloat16: 4e-2, torch.float16: 5e-3}[dtype]
        torch.testing.assert_close(got.double(), exact.detach(), rtol=0, atol=atol)
        assert torch.equal(x, before)


def test_shards_of_any_split_add_up_and_take_foreign_choices_as_minus_one() -> None:
    modules = reference_experts(5, 3, torch.float32, layers=1)
    whole = shard_of(modules)
    ids, weights = routing(23, 5, 3, seed=15)
    x = randn(23, 32, seed=16)
    want = whole.forward(0, x, ids, weights)
    for split in ([[0, 1, 2, 3, 4]], [[0], [1, 2, 3, 4]], [[4, 0], [2], [3, 1]]):
        total = torch.zeros_like(x)
        for held in split:
            mine = torch.isin(ids, torch.tensor(held))
            part = shard_of(modules, [(0, expert) for expert in held])
            # A foreign choice's weight must not matter, whatever it is.
            poisoned = torch.where(mine, weights, torch.nan)
            total += part.forward(0, x, torch.where(mine, ids, -1).int(), poisoned)
        torch.testing.assert_close(total, want, rtol=0, atol=2e-6)


def scaling_expert(factor: float, hidden: int = 8) -> Expert:
    """An expert that is linear where its first input is 1: silu(x0 * c) * factor * x / silu(c).

    With c = 32 silu is the identity in fp32, so integers come out exactly.
    """
    w1 = torch.zeros(hidden, hidden)
    w1[:, 0] = 32.0
    return Expert(w1, torch.eye(hidden) * factor, torch.eye(hidden) / 32.0)


def integers(rows: int, hidden: int = 8) -> torch.Tensor:
    x = torch.arange(rows * hidden, dtype=torch.float32).view(rows, hidden) % 97
    x[:, 0] = 1.0
    return x


@pytest.mark.parametrize(
    "choices",
    [
        [[0, 1]] * 6,
        [[2, 0]] * 6,
        [[0, 1], [0, 2], [0, 3], [3, 0], [1, 0], [0, 1]],
        [[3, 2], [-1, -1], [-1, 1], [0, -1], [-1, -1], [2, 3]],
        [[-1, -1]] * 6,
    ],
)
def test_sums_of_linear_experts_are_exact(choices: list[list[int]]) -> None:
    factors = [1.0, 2.0, 4.0, 8.0]
    shard = ExpertShard({(7, e): scaling_expert(f) for e, f in enumerate(factors)})
    weights = [0.25, 0.75]
    x = integers(6)
    got = shard.forward(7, x, torch.tensor(choices), torch.tensor([weights] * 6))
    want = [
        sum(w * factors[e] for e, w in zip(row, weights, strict=True) if e >= 0) for row in choices
    ]
    assert torch.equal(got, x * torch.tensor(want)[:, None])


def test_a_shard_knows_what_it_holds() -> None:
    modules = reference_experts(4, 2, torch.bfloat16, layers=3)
    shard = shard_of(modules, [(0, 1), (2, 3)])
    assert sorted(shard.held) == [(0, 1), (2, 3)]
    assert shard.num_bytes == 2 * 3 * 32 * 40 * 2
    with pytest.raises(KeyError):
        shard.forward(1, torch.ones(1, 32), torch.tensor([[1]]), torch.ones(1, 1))


def test_load_counts_every_choice_once_and_only_finished_steps() -> None:
    load = ExpertLoad(3, 5, top_k=2, num_slots=16, device=CPU)
    want = [[0] * 5 for _ in range(3)]
    for step, rows in enumerate([16, 1, 7]):
        for layer in range(3):
            ids, _ = routing(rows, 5, 2, seed=40 + 3 * step + layer)
            load.record(layer, ids)
            for expert in ids.flatten().tolist():
                want[layer][expert] += 1
        load.finish_step(torch.arange(rows), torch.full((rows,), -1))
    assert load.totals() == want
    assert [sum(row) for row in load.totals()] == [2 * 24] * 3
    for layer in range(3):  # a step that fails half way is not counted
        load.record(layer, torch.zeros(4, 2, dtype=torch.int64))
    assert load.totals() == want
    load.reset()
    assert load.totals() == [[0] * 5] * 3
