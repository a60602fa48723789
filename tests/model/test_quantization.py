"""Rounding weights to 8 and 4 bits, against what rounding may cost at most."""

from __future__ import annotations

import pytest
import torch

from model.linear import Linear
from model.quantization import GROUP, CompactMatrix, quantize

SHAPES = [(1, 1), (3, 5), (16, GROUP), (7, GROUP + 2), (40, 3 * GROUP), (5000, 300)]


def random_matrix(outputs: int, inputs: int) -> torch.Tensor:
    """Rows and groups of very different sizes, with a few weights that stick out."""
    generator = torch.Generator().manual_seed(outputs * 1000 + inputs)
    weight = torch.randn(outputs, inputs, generator=generator)
    weight *= 10 ** torch.randn(outputs, 1, generator=generator)
    weight[torch.rand(outputs, inputs, generator=generator) < 0.01] *= 20
    return weight


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_off_by_half_a_step_of_its_row_at_most(shape: tuple[int, int]) -> None:
    weight = random_matrix(*shape)
    matrix = quantize(weight, 8)
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert matrix.numbers_OI.shape == shape and matrix.scales_OG.shape == (shape[0], 1)
    assert ((matrix.dequantize(torch.float32) - weight).abs() <= step * 0.5001).all()
    assert matrix.numbers_OI.abs().amax(dim=1).eq(127).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_int4_is_no_worse_in_any_group_than_plain_rounding(shape: tuple[int, int]) -> None:
    weight = random_matrix(*shape)
    matrix = quantize(weight, 4)
    got = matrix.dequantize(torch.float32)
    assert matrix.scales_OG.shape == (shape[0], -(-shape[1] // GROUP))
    assert int(matrix.numbers_OI.abs().max()) <= 7
    better = 0
    for begin in range(0, shape[1], GROUP):
        part = weight[:, begin : begin + GROUP]
        step = part.abs().amax(dim=1, keepdim=True) / 7
        plain = ((part / step).round() * step - part).square().sum(dim=1)
        ours = (got[:, begin : begin + GROUP] - part).square().sum(dim=1)
        assert (ours <= plain * 1.0001).all()
        better += int((ours < plain * 0.99).sum())
    assert better or shape[1] < GROUP, "no other scale was ever chosen"


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_zeros_stay_zeros(bits: int) -> None:
    weight = torch.zeros(4, 200)
    weight[1] = random_matrix(1, 200)
    got = quantize(weight, bits).dequantize(torch.float32)
    assert not got[[0, 2, 3]].any() and got[1].any()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_compact_form_loses_nothing(bits: int, shape: tuple[int, int]) -> None:
    matrix = quantize(random_matrix(*shape), bits)
    again = CompactMatrix.of(matrix).restore()
    assert torch.equal(again.numbers_OI, matrix.numbers_OI)
    assert torch.equal(again.scales_OG, matrix.scales_OG)


@pytest.mark.parametrize(("bits", "share"), [(8, 1 / 4 + 0.01), (4, 1 / 8 + 0.01)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_linear_multiplies_by_what_it_was_rounded_to(
    bits: int, share: float, dtype: torch.dtype
) -> None:
    weight = random_matrix(33, 2 * GROUP).clamp_(-9, 9).to(dtype)
    x = torch.randn(5, 2 * GROUP, generator=torch.Generator().manual_seed(1)).to(dtype)
    linear = Linear(weight, bits)
    exact = x.float() @ quantize(weight, bits).dequantize(torch.float32).T
    rounding = {torch.float32: 1e-5, torch.float16: 1e-2}[dtype]
    torch.testing.assert_close(linear(x).float(), exact, rtol=rounding, atol=20 * rounding)
    assert linear.num_bytes <= share * weight.numel() * 4
