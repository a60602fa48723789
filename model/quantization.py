"""Weight-only quantization: whole numbers of 8 or 4 bits, and the scales that they stand for.

int8 has one scale per output, int4 one for every GROUP inputs of it (the last may have fewer).
Both are symmetric and round to nearest. int4 tries several scales and keeps the one with the least
squared error, as is usual since what it costs is paid once, at load.
Shape suffixes: O outputs, I inputs, G groups of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

GROUP = 128  # inputs that share a scale of int4
_MOST = {8: 127, 4: 7}
_AT_ONCE = 1 << 20  # weights: so much fits a core's caches
_TRIED = (1.0, 0.95, 0.9, 0.85, 0.8)  # shares of the scale at which the largest weight fits


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """`weight_OI` is about `numbers_OI * scales_OG`, each scale over its group of inputs."""

    bits: int
    numbers_OI: torch.Tensor  # int8
    scales_OG: torch.Tensor  # fp32
    dtype: torch.dtype  # of the rows that it multiplies

    @property
    def shape(self) -> tuple[int, int]:
        """[O, I]."""
        outputs, inputs = self.numbers_OI.shape
        return outputs, inputs

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.numbers_OI.device

    @property
    def num_bytes(self) -> int:
        """What it takes once it is packed, padding aside."""
        return math.ceil(self.numbers_OI.numel() * self.bits / 8) + 4 * self.scales_OG.numel()

    def to(self, device: torch.device) -> QuantizedMatrix:
        """The same on this device."""
        numbers_OI, scales_OG = self.numbers_OI.to(device), self.scales_OG.to(device)
        return QuantizedMatrix(self.bits, numbers_OI, scales_OG, self.dtype)

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix it stands for, [O, I]."""
        inputs = self.shape[1]
        group = _group_of(self.bits, inputs)
        missing = -inputs % group
        numbers_OI = F.pad(self.numbers_OI, (0, missing)) if missing else self.numbers_OI
        numbers = numbers_OI.unflatten(1, (-1, group))
        dense = torch.empty(numbers.shape, dtype=dtype, device=self.device)
        # Multiplied in fp32 and rounded once.
        torch.mul(numbers, self.scales_OG.unsqueeze(-1), out=dense)
        return dense.flatten(1)[:, :inputs].contiguous()


@dataclass(frozen=True, slots=True)
class CompactMatrix:
    """A quantized matrix in no more bytes than it needs: two numbers of 4 bits to a byte."""

    bits: int
    inputs: int
    numbers: torch.Tensor  # int8, [O, I], with 4 bits [O, (I + 1) // 2]
    scales_OG: torch.Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, matrix: QuantizedMatrix) -> CompactMatrix:
        """The same matrix, compact."""
        inputs, numbers = matrix.shape[1], matrix.numbers_OI
        if matrix.bits == 4:
            padded = F.pad(numbers, (0, inputs % 2))
            numbers = (padded[:, 0::2] & 15) | (padded[:, 1::2] << 4)
        return cls(matrix.bits, inputs, numbers, matrix.scales_OG, matrix.dtype)

    def restore(self) -> QuantizedMatrix:
        """The matrix again."""
        numbers_OI = self.numbers
        if self.bits == 4:
            low, high = (numbers_OI << 4) >> 4, numbers_OI >> 4  # int8: the sign is carried along
            numbers_OI = torch.stack((low, high), dim=-1).flatten(1)[:, : self.inputs]
        return QuantizedMatrix(self.bits, numbers_OI, self.scales_OG, self.dtype)


def side_by_side(matrices: Sequence[QuantizedMatrix]) -> QuantizedMatrix:
    """Matrices of the same inputs as one, their outputs one after another."""
    numbers_OI = torch.cat([one.numbers_OI for one in matrices])
    scales_OG = torch.cat([one.scales_OG for one in matrices])
    return QuantizedMatrix(matrices[0].bits, numbers_OI, scales_OG, matrices[0].dtype)


def shape_of_scales(bits: int, outputs: int, inputs: int) -> tuple[int, int]:
    """[O, G] of a matrix."""
    return outputs, -(-inputs // _group_of(bits, inputs))


def quantize(weight_OI: torch.Tensor, bits: int) -> QuantizedMatrix:
    """Round a matrix to so many bits (8 or 4). Every output by itself, whatever is beside it."""
    rows = max(1, _AT_ONCE // weight_OI.shape[1])
    parts = [_quantize(part, bits) for part in weight_OI.split(rows)]
    numbers, scales = zip(*parts, strict=True)
    return QuantizedMatrix(bits, torch.cat(numbers), torch.cat(scales), weight_OI.dtype)


def _quantize(weight_OI: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    outputs, inputs = weight_OI.shape
    group = _group_of(bits, inputs)
    padded = F.pad(weight_OI.float(), (0, -inputs % group)).view(outputs, -1, group)
    largest = padded.abs().amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
    most = _MOST[bits]
    scales, numbers = largest / most, _round(padded, largest / most, most)
    if bits == 4:
        error = _error(padded, numbers, scales)
        for share in _TRIED[1:]:
            tried = largest * (share / most)
            rounded = _round(padded, tried, most)
            tried_error = _error(padded, rounded, tried)
            better = tried_error < error
            error = torch.where(better, tried_error, error)
            scales = torch.where(better, tried, scales)
            numbers = torch.where(better, rounded, numbers)
    numbers_OI = numbers.view(outputs, -1)[:, :inputs].to(torch.int8)
    return numbers_OI, scales.squeeze(-1)


def _group_of(bits: int, inputs: int) -> int:
    return inputs if bits == 8 else GROUP


def _round(x: torch.Tensor, scales: torch.Tensor, most: int) -> torch.Tensor:
    return (x / scales).round_().clamp_(-most, most)


def _error(x: torch.Tensor, numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(x, numbers, scales, value=-1.0).square_().sum(dim=-1, keepdim=True)
