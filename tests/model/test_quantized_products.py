"""Products with quantized matrices by torch, against fp32 arithmetic with what these stand for."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import model.quantized_products as products
from model.linear import Linear
from model.quantization import GROUP, QuantizedMatrix, quantize
from model.quantized_products import (
    Int4InBlocks,
    Int8,
    PackedInt4,
    Restored,
    product_with,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Half the spacing of numbers from 1 to 2.
HALF_UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SHAPES = [(1, 1), (3, 5), (15, GROUP), (16, GROUP + 1), (70, 2 * GROUP), (5, 257), (700, 1023)]
SHAPES += [(4130, 130)]  # more outputs than are packed at once
ROWS = [0, 1, 2, 5, 33, 130]


def matrix_of(outputs: int, inputs: int, bits: int, dtype: torch.dtype) -> QuantizedMatrix:
    generator = torch.Generator().manual_seed(outputs * 1000 + inputs)
    weight = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
    weight *= 10 ** torch.randn(outputs, 1, generator=generator)
    return quantize(weight.to(dtype), bits)


def rows_of(count: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows that do not lie side by side, nor where vectors begin, with NaN around them."""
    wide = torch.full((count, inputs + 3), float("nan"), dtype=dtype)
    x = wide[:, 1 : inputs + 1]
    x.copy_(torch.randn(count, inputs, generator=torch.Generator().manual_seed(count)))
    return x


def assert_is_product(y: torch.Tensor, x: torch.Tensor, matrix: QuantizedMatrix) -> None:
    weight = matrix.dequantize(torch.float64)
    exact, magnitude = x.double() @ weight.T, x.double().abs() @ weight.abs().T
    assert (y.dtype, y.shape) == (x.dtype, exact.shape) and y.is_contiguous()
    unit = HALF_UNIT[x.dtype]
    # The sum and what it is scaled to are rounded, in fp32 every term; in bf16 the scales too.
    bound = 2.02 * unit * exact.abs() + len(weight.T) * 2.0**-23 * magnitude
    if x.dtype == torch.bfloat16:
        bound += unit * magnitude
    if x.dtype == torch.float16:
        bound += 2.0**-24  # the smallest one
    assert ((y.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("most_rows", [0, 1000])
def test_it_is_the_product_in_fp32_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int],
    bits: int,
    dtype: torch.dtype,
    most_rows: int,
) -> None:
    monkeypatch.setattr(products, "_FEW_ROWS", most_rows)
    monkeypatch.setattr(products, "_multiplies_bf16", lambda: True)
    monkeypatch.setattr(products, "_BLOCK_WEIGHTS", 20 * shape[1])  # the last block is no whole one
    matrix = matrix_of(*shape, bits, dtype)
    product = product_with(matrix)
    for rows in ROWS:
        x = rows_of(rows, shape[1], dtype)
        assert_is_product(product(x), x, matrix)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_may_begin_at_any_address(bits: int) -> None:
    matrix = matrix_of(40, 2 * GROUP, bits, torch.bfloat16)
    product = product_with(matrix)
    for offset in range(1, 33, 6):
        flat = torch.full((offset + 6 * GROUP,), float("nan"), dtype=torch.bfloat16)
        x = flat[offset:].view(3, 2 * GROUP)
        x.copy_(rows_of(3, 2 * GROUP, torch.bfloat16))
        assert_is_product(product(x), x, matrix)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_is_the_same_whatever_is_beside_it(bits: int, dtype: torch.dtype) -> None:
    matrix = matrix_of(70, 300, bits, dtype)
    product, x = product_with(matrix), rows_of(43, 300, dtype)
    x[7] = float("nan")
    x[11] *= 100
    for rows in (8, 20, 43):
        y = product(x[:rows])
        assert y[7].isnan().all()
        others = [row for row in range(rows) if row != 7]
        assert_is_product(y[others].contiguous(), x[others], matrix)


@pytest.mark.parametrize(
    ("bits", "dtype", "kind"),
    [
        (8, torch.float32, Int8),
        (8, torch.bfloat16, Int8),
        (4, torch.float32, Int4InBlocks),
        (4, torch.float16, Int4InBlocks),
        (4, torch.bfloat16, PackedInt4),
    ],
)
def test_no_more_is_held_than_is_told(
    bits: int, dtype: torch.dtype, kind: type[Int8 | Int4InBlocks | PackedInt4]
) -> None:
    matrix = matrix_of(64, 4 * GROUP, bits, dtype)
    product = product_with(matrix)
    assert isinstance(product, kind)
    held = [getattr(product, name) for name in kind.__slots__]
    num_bytes = sum(one.nbytes for one in held if isinstance(one, torch.Tensor))
    odd = QuantizedMatrix(bits, matrix.numbers_OI[:, 1:], matrix.scales_OG, dtype)
    assert num_bytes == matrix.num_bytes
    assert Linear(odd).num_bytes == odd.num_bytes  # torch's, also where the project's kernels are


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_elsewhere_the_matrix_is_turned_back(bits: int, dtype: torch.dtype) -> None:
    matrix = matrix_of(70, 300, bits, dtype)
    assert isinstance(product_with(matrix.to(torch.device("meta"))), Restored)
    x = rows_of(5, 300, dtype)
    wanted = (
        matrix.numbers_OI * matrix.scales_OG[:, torch.arange(300) // (300 if bits == 8 else GROUP)]
    )
    assert torch.equal(matrix.dequantize(dtype), wanted.to(dtype))
    torch.testing.assert_close(
        Restored(matrix)(x), x @ wanted.to(dtype).T, rtol=4 * HALF_UNIT[dtype], atol=1e-2
    )


@pytest.mark.parametrize(
    ("capability", "hip", "packs"),
    [((8, 0), None, True), ((9, 0), None, True), ((7, 5), None, False), ((9, 4), "6.4", False)],
)
def test_int4_is_packed_on_cuda_devices_since_ampere(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None, packs: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert products._packs_int4(torch.device("cuda", 0)) is packs


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_takes_the_shapes_and_types_that_cuda_is_given(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    """By torch's own rules for tensors without contents; nothing is computed."""
    monkeypatch.setattr(products, "_packs_int4", lambda _: True)
    outputs, inputs = shape
    with FakeTensorMode():
        numbers_OI = torch.empty(shape, dtype=torch.int8, device="meta")
        scales_OG = torch.empty(outputs, -(-inputs // GROUP), device="meta")
        product = product_with(QuantizedMatrix(4, numbers_OI, scales_OG, torch.bfloat16))
        assert isinstance(product, PackedInt4)
        for rows in ROWS:
            y = product(torch.empty(rows, inputs, dtype=torch.bfloat16, device="meta"))
            assert (y.shape, y.dtype) == ((rows, outputs), torch.bfloat16)


def test_cuda_gets_two_inputs_to_a_byte_the_first_above() -> None:
    numbers = torch.tensor([[-7, 7, 0, 1], [3, -3, -1, 0]], dtype=torch.int8)
    assert products._in_pairs(numbers).tolist() == [[0x1F, 0x89], [0xB5, 0x78]]
