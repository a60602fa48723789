"""The compiled kernels over 8 and 4 bits, against products with what these stand for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from model.cpu_kernels.library import CpuKernels
from model.cpu_kernels.quantized_packing import pack_quantized
from model.experts import ExpertShard, PackedExpert, make_expert
from model.quantization import quantize
from tests.compiled_kernels import kernels_in_use, variants_and_threads

BF16 = torch.bfloat16
NAN = float("nan")
ROWS = [1, 2, 4, 5, 14, 15, 43]


@pytest.fixture(params=variants_and_threads(1, 3), ids=str)
def kernels(request: pytest.FixtureRequest) -> Iterator[CpuKernels]:
    with kernels_in_use(*request.param) as found:
        yield found


def _random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(BF16)


def _rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    return quantize(weight, bits).dequantize(torch.float32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [(32, 2), (5, 64), (100, 130), (33, 254), (64, 1024), (31, 6), (530, 2340)],
)
def test_linear_is_the_product_in_fp32(
    kernels: CpuKernels, bits: int, outputs: int, inputs: int
) -> None:
    weight = _random(outputs, inputs, seed=1, scale=inputs**-0.5)
    packed = pack_quantized(quantize(weight, bits))
    for rows in ROWS:
        x = _random(rows, inputs, seed=rows)
        y = kernels.linear(x, packed, outputs, bits)
        exact = x.float() @ _rounded(weight, bits).T
        torch.testing.assert_close(y.float(), exact, rtol=2**-8, atol=2**-9)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("inputs", [390, 2340])
def test_a_rows_result_depends_on_nothing_beside_it(
    kernels: CpuKernels, bits: int, inputs: int
) -> None:
    packed = pack_quantized(quantize(_random(96, inputs, seed=1), bits))
    x = _random(43, inputs, seed=2)
    x[7] = NAN
    alone = torch.cat([kernels.linear(x[i : i + 1], packed, 96, bits) for i in range(43)])
    for rows in ROWS:
        together = kernels.linear(x[:rows], packed, 96, bits)
        assert torch.equal(together[:7], alone[: min(rows, 7)])
        assert torch.equal(together[8:], alone[8:rows])
    assert alone[7].isnan().all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("width", "inner", "num_experts", "top_k", "rows"),
    [(64, 96, 8, 2, 1), (98, 118, 5, 2, 20), (160, 210, 5, 3, 61), (32, 14, 3, 1, 100)],
)
def test_experts_are_the_weighted_sum_in_fp32(
    kernels: CpuKernels,
    bits: int,
    width: int,
    inner: int,
    num_experts: int,
    top_k: int,
    rows: int,
) -> None:
    held, exact = {}, {}
    for e in range(num_experts):
        w1, w3 = (_random(inner, width, seed=9 * e + i, scale=width**-0.5) for i in range(2))
        w2 = _random(width, inner, seed=9 * e + 2, scale=inner**-0.5)
        held[3, e] = expert = make_expert(w1, w3, w2, bits=bits)
        assert isinstance(expert, PackedExpert)
        assert expert.num_bytes < 3 * inner * width * (bits / 8 + 4 / 16 + 4 / 7)
        exact[e] = tuple(_rounded(weight, bits) for weight in (w1, w3, w2))
    x = _random(rows, width, seed=99)
    logits = torch.randn(rows, num_experts, generator=torch.Generator().manual_seed(5))
    top, ids = logits.topk(top_k)
    weights = top.softmax(-1)
    ids[::3, -1] = -1  # another rank's
    want = torch.zeros(rows, width)
    for row in range(rows):
        for e, weight in zip(ids[row].tolist(), weights[row], strict=True):
            if e >= 0:
                w1, w3, w2 = exact[e]
                hidden = F.silu(w1 @ x[row].float()) * (w3 @ x[row].float())
                want[row] += weight * (w2 @ hidden.to(BF16).float())
    y = ExpertShard(held).forward(3, x, ids, weights)
    # A hidden value next to the middle of two bf16 may be rounded the other way.
    torch.testing.assert_close(y.float(), want, rtol=2**-7, atol=2**-8)
