"""The compiled kernel of low-rank experts against fp32 arithmetic, on shapes that fill no panel."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from model.cpu_kernels.library import CpuKernels
from model.experts import Expert, ExpertShard, make_expert
from model.low_rank_experts import LowRankExpert
from model.projection import Factors, Plain
from model.quantization import quantize
from tests.compiled_kernels import kernels_in_use, variants_and_threads

BF16 = torch.bfloat16
Matrices = tuple[Factors, Factors, Factors]


@pytest.fixture(params=variants_and_threads(1, 3), ids=str)
def kernels(request: pytest.FixtureRequest) -> Iterator[CpuKernels]:
    with kernels_in_use(*request.param) as found:
        yield found


def _random(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])).to(BF16)


def _factors(outputs: int, inputs: int, rank: int, seed: int) -> Factors:
    return Factors(_random(rank, inputs, seed=seed), 2 * _random(outputs, rank, seed=seed + 1))


def _expert(width: int, inner: int, ranks: tuple[int, int, int], seed: int) -> Matrices:
    """w1, w3 and w2 of these ranks."""
    return (
        _factors(inner, width, ranks[0], 10 * seed),
        _factors(inner, width, ranks[1], 10 * seed + 2),
        _factors(width, inner, ranks[2], 10 * seed + 4),
    )


def _exact(matrices: Matrices, x: torch.Tensor, bits: int) -> torch.Tensor:
    """One row in fp32; what is between two products is rounded as the kernel rounds it."""

    def weight(matrix: Plain) -> torch.Tensor:
        assert isinstance(matrix, torch.Tensor)
        if bits == 16:
            return matrix.float()
        return quantize(matrix, bits).dequantize(torch.float32)

    def both(matrix: Factors, row: torch.Tensor) -> torch.Tensor:
        narrow = (weight(matrix.first_RI) @ row).to(BF16).float()
        return weight(matrix.second_OR) @ narrow

    w1, w3, w2 = matrices
    hidden = F.silu(both(w1, x)) * both(w3, x)
    return both(w2, hidden.to(BF16).float())


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(
    ("width", "inner", "experts", "top_k", "rows"),
    [(64, 96, 4, 2, 1), (98, 118, 5, 2, 20), (160, 200, 3, 3, 61), (32, 14, 3, 1, 100)],
)
def test_it_is_the_weighted_sum_in_fp32(
    kernels: CpuKernels, bits: int, width: int, inner: int, experts: int, top_k: int, rows: int
) -> None:
    ranks = [(32, 32, 32), (2, 70, 16), (130, 6, 34), (16, 48, 2), (10, 12, 140)]
    held = {e: _expert(width, inner, ranks[e], e) for e in range(experts)}
    made = {(3, e): make_expert(*matrices, bits=bits) for e, matrices in held.items()}
    assert all(isinstance(expert, LowRankExpert) for expert in made.values())
    shard = ExpertShard(made)
    x = 4 * _random(rows, width, seed=99)
    logits = torch.randn(rows, experts, generator=torch.Generator().manual_seed(5))
    top, ids = logits.topk(top_k)
    weights = top.softmax(-1)
    ids[::3, -1] = -1  # another rank's
    y = shard.forward(3, x, ids, weights)

    want = torch.zeros(rows, width)
    for row in range(rows):
        for expert_id, weight in zip(ids[row].tolist(), weights[row], strict=True):
            if expert_id >= 0:
                want[row] += weight * _exact(held[expert_id], x[row].float(), bits)
    torch.testing.assert_close(y.float(), want, rtol=2**-6, atol=2**-7 * want.abs().max().item())
    assert (y.float() - want).norm() / want.norm() < 2**-7
    for row in range(0, rows, 7):  # and a row's does not depend on those beside it
        one = slice(row, row + 1)
        assert torch.equal(shard.forward(3, x[one], ids[one], weights[one]), y[one])


def test_one_alone_serves_as_a_dense_models_block(kernels: CpuKernels) -> None:
    matrices = _expert(64, 96, (16, 8, 24), 1)
    expert, x = make_expert(*matrices), 4 * _random(17, 64, seed=9)
    want = torch.stack([_exact(matrices, row.float(), 16) for row in x])
    assert (expert(x).float() - want).norm() / want.norm() < 2**-7
    assert expert.num_bytes == 2 * (16 + 8 + 24) * (64 + 96)


def test_an_odd_rank_goes_one_by_one(kernels: CpuKernels) -> None:
    matrices = _expert(64, 96, (16, 9, 24), 1)
    expert, x = make_expert(*matrices), 4 * _random(5, 64, seed=9)
    assert isinstance(expert, Expert)
    want = torch.stack([_exact(matrices, row.float(), 16) for row in x])
    assert (expert(x).float() - want).norm() / want.norm() < 2**-6
