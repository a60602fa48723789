"""Products with quantized matrices where the project's own kernels do not run.

Rows in bf16 go to torch's packed kernels: int4 on CPUs and on CUDA devices, int8 on CPUs. For
float32 and float16 these have no vector code on x86 (torch 2.13), and on CUDA the one for int8
gives each output a single thread; there a matrix is turned back, on CPUs as many outputs at a time
as stay in the caches.
Shape suffixes: T rows, I inputs, O outputs, G groups of inputs; J inputs and P outputs with what
they are padded by; B outputs of a block, H half of J.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from model.quantization import GROUP, CompactMatrix, QuantizedMatrix

# Inputs that torch's int8 kernel (16) and oneDNN's with AMX (32) read at once: the former aligned,
# both past a row's end, where NaN of the next row would count.
_VECTOR = 32
_ALIGNED_BYTES = 32  # of such rows
_TILE = 16  # outputs, for int4
_PACKED_AT_ONCE = 4096  # outputs, in whole tiles of any layout: torch packs int4 from int32
# Where the CPU itself multiplies bf16, more rows than these are faster over int8 that is turned
# back (3584 x 1024 on Zen 5, kernel and blocks: 1.6 and 1.6 ms at 32 rows, 6.0 and 3.3 at 128).
# With AVX512 alone the kernel won at 1 to 512 rows, with AVX2 it took at most 1.3 times as long.
_FEW_ROWS = 32
_BLOCK_WEIGHTS = 1 << 19  # turned back at once: 2 MiB in fp32
_LEAST_BLOCK = 16  # outputs


class QuantizedProduct(Protocol):
    """`y_TO = x_TI @ weight_OI.T` with a quantized weight, held once."""

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return y_TO in the dtype of x."""
        ...


def product_with(matrix: QuantizedMatrix) -> QuantizedProduct:
    """Hold a matrix in the form that torch multiplies by fastest on its device."""
    if matrix.bits == 4 and matrix.dtype == torch.bfloat16 and _packs_int4(matrix.device):
        return PackedInt4(matrix)
    if matrix.device.type == "cpu":
        return Int8(matrix) if matrix.bits == 8 else Int4InBlocks(matrix)
    return Restored(matrix)


class PackedInt4:
    """int4 in torch's packed layout, for rows in bf16; scales are rounded to bf16 too.

    The CUDA branch is written after torch's source and has not been run.
    """

    __slots__ = ("_inputs", "_multiply", "_outputs", "_packed", "_scales_and_zeros_GP2")

    def __init__(self, matrix: QuantizedMatrix) -> None:
        self._outputs, inputs = matrix.shape
        self._inputs = inputs + -inputs % GROUP
        missing = -self._outputs % _TILE
        numbers_PJ = F.pad(matrix.numbers_OI, (0, -inputs % GROUP, 0, missing))
        scales_GP = F.pad(matrix.scales_OG, (0, 0, 0, missing)).t()
        # The kernels take numbers from 0 to 15: (number - 8) * scale + zero.
        zeros_GP = torch.zeros_like(scales_GP)
        self._scales_and_zeros_GP2 = torch.stack((scales_GP, zeros_GP), dim=-1).bfloat16()
        pack: Callable[[torch.Tensor], torch.Tensor]
        if matrix.device.type == "cpu":
            pack, self._multiply = _pack_for_cpu, torch.ops.aten._weight_int4pack_mm_for_cpu
        else:
            pack, self._multiply = _pack_for_cuda, torch.ops.aten._weight_int4pack_mm
        self._packed = torch.cat([pack(part) for part in numbers_PJ.split(_PACKED_AT_ONCE)])

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return y_TO in the dtype of x."""
        if not len(x_TI):  # CUDA starts no empty grid
            return x_TI.new_empty(0, self._outputs)
        x_TJ = _padded(x_TI, self._inputs).contiguous()
        y_TP: torch.Tensor = self._multiply(x_TJ, self._packed, GROUP, self._scales_and_zeros_GP2)
        return y_TP[:, : self._outputs].contiguous()


class Int8:
    """int8 on CPUs, row by row: what torch's kernel reads, and what is easily turned back.

    With rows in bf16 the kernel's scales are rounded to bf16; all else uses them in fp32.
    """

    __slots__ = ("_numbers_OJ", "_scales_O")

    def __init__(self, matrix: QuantizedMatrix) -> None:
        missing = -matrix.shape[1] % _VECTOR
        self._numbers_OJ = _aligned(_padded(matrix.numbers_OI, matrix.shape[1] + missing))
        self._scales_O = matrix.scales_OG.flatten()

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return y_TO in the dtype of x."""
        x_TJ = _padded(x_TI, self._numbers_OJ.shape[1])
        is_bf16 = x_TI.dtype == torch.bfloat16
        if is_bf16 and (len(x_TI) <= _FEW_ROWS or not _multiplies_bf16()):
            scales_O = self._scales_O.bfloat16()
            return torch._weight_int8pack_mm(_aligned(x_TJ), self._numbers_OJ, scales_O)
        # bf16 has every number from -127 to 127, so the scales can wait for the sums.
        x_TJ = x_TJ if is_bf16 else x_TJ.float()
        y_TO = _in_blocks(x_TJ, len(self._numbers_OJ), self._turn_back)
        return (y_TO * self._scales_O).to(x_TI.dtype)

    def _turn_back(self, dense_BJ: torch.Tensor, first: int) -> None:
        dense_BJ.copy_(self._numbers_OJ[first : first + len(dense_BJ)])


class Int4InBlocks:
    """int4 on CPUs for rows in float32 and float16, multiplied in fp32.

    A byte has a number of each half of the inputs, so that halves are turned back in one piece.
    """

    __slots__ = ("_bytes_OH", "_scales_OG")

    def __init__(self, matrix: QuantizedMatrix) -> None:
        missing = -matrix.shape[1] % (2 * GROUP)
        first_OH, second_OH = F.pad(matrix.numbers_OI, (0, missing)).chunk(2, dim=1)
        self._bytes_OH = (first_OH & 15) | (second_OH << 4)
        groups = 2 * self._bytes_OH.shape[1] // GROUP
        self._scales_OG = _padded(matrix.scales_OG, groups).contiguous()

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return y_TO in the dtype of x."""
        x_TJ = _padded(x_TI.float(), 2 * self._bytes_OH.shape[1])
        return _in_blocks(x_TJ, len(self._bytes_OH), self._turn_back).to(x_TI.dtype)

    def _turn_back(self, dense_BJ: torch.Tensor, first: int) -> None:
        outputs = len(dense_BJ)
        bytes_BH = self._bytes_OH[first : first + outputs]
        halves_B2H = dense_BJ.view(outputs, 2, -1)
        halves_B2H[:, 0] = (bytes_BH << 4) >> 4  # int8: the sign is carried along
        halves_B2H[:, 1] = bytes_BH >> 4
        scales_BG1 = self._scales_OG[first : first + outputs].unsqueeze(-1)
        dense_BJ.view(outputs, -1, GROUP).mul_(scales_BG1)


class Restored:
    """The whole matrix is turned back for every product."""

    __slots__ = ("_matrix",)

    def __init__(self, matrix: QuantizedMatrix) -> None:
        self._matrix = CompactMatrix.of(matrix)

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return y_TO in the dtype of x."""
        return F.linear(x_TI, self._matrix.restore().dequantize(x_TI.dtype))


def _packs_int4(device: torch.device) -> bool:
    """Whether torch has a kernel for int4 there: on CUDA devices since Ampere."""
    if device.type == "cuda" and torch.version.hip is None:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu"


def _multiplies_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported())


def _pack_for_cpu(numbers_PJ: torch.Tensor) -> torch.Tensor:
    numbers_PJ = numbers_PJ.to(torch.int32) + 8
    packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers_PJ, 1)
    return packed


def _pack_for_cuda(numbers_PJ: torch.Tensor) -> torch.Tensor:
    inner_tiles = GROUP // 16  # of 16 inputs, in one read: the most there are
    bytes_PH = _in_pairs(numbers_PJ)
    packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack(bytes_PH, inner_tiles)
    return packed


def _in_pairs(numbers_PJ: torch.Tensor) -> torch.Tensor:
    """Two neighbouring inputs to a byte, the first one above."""
    above_zero = (numbers_PJ + 8).view(torch.uint8)
    return (above_zero[:, 0::2] << 4) | above_zero[:, 1::2]


def _in_blocks(
    x_TJ: torch.Tensor, outputs: int, turn_back: Callable[[torch.Tensor, int], None]
) -> torch.Tensor:
    """Return y_TO; `turn_back` fills a block with the weights of the outputs from one on."""
    inputs = x_TJ.shape[1]
    most = max(_LEAST_BLOCK, _BLOCK_WEIGHTS // inputs)
    dense_BJ = x_TJ.new_empty(min(outputs, most), inputs)
    y_TO = x_TJ.new_empty(len(x_TJ), outputs)
    for first in range(0, outputs, most):
        block_BJ = dense_BJ[: outputs - first]
        turn_back(block_BJ, first)
        y_TO[:, first : first + most] = F.linear(x_TJ, block_BJ)
    return y_TO


def _padded(matrix: torch.Tensor, width: int) -> torch.Tensor:
    missing = width - matrix.shape[1]
    return F.pad(matrix, (0, missing)) if missing else matrix


def _aligned(matrix: torch.Tensor) -> torch.Tensor:
    """The same side by side and at an address that vectors can be read from."""
    matrix = matrix.contiguous()
    return matrix.clone() if matrix.data_ptr() % _ALIGNED_BYTES else matrix
