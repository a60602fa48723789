"""Quantized matrices in the form that the kernels read (panels.h has it in words).

Shape suffixes: O outputs, I inputs, G groups of inputs, P panels of 32 outputs, o outputs of one or
of half of one, K pairs of inputs, J pairs of pairs, i inputs of a pair; F, X any.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.host_memory import empty_for_weights
from model.quantization import QuantizedMatrix

_PANEL, _HALF = 32, 16
_OUTER_BYTES = -0x00FFFF01  # 0xFF0000FF as int32 has it


def pack_quantized(matrix: QuantizedMatrix) -> torch.Tensor:
    """Return the panels as bytes, outputs padded to whole panels with zeros; I is even."""
    outputs = matrix.numbers_OI.shape[0]
    missing = -outputs % _PANEL
    numbers_OI = F.pad(matrix.numbers_OI, (0, 0, 0, missing))
    scales_OG = F.pad(matrix.scales_OG, (0, 0, 0, missing))
    panels = (outputs + missing) // _PANEL
    scales_PG = scales_OG.view(panels, _PANEL, -1).transpose(1, 2).reshape(panels, -1)
    data = _bytes_8(numbers_OI) if matrix.bits == 8 else _bytes_4(numbers_OI)
    parts = scales_PG.view(torch.uint8), data
    panels_PB = empty_for_weights((panels, sum(part.shape[1] for part in parts)), torch.uint8)
    return torch.cat(parts, dim=1, out=panels_PB)


def _bytes_8(numbers_OI: torch.Tensor) -> torch.Tensor:
    outputs, inputs = numbers_OI.shape
    pairs_PoK = numbers_OI.contiguous().view(torch.int16).view(-1, _PANEL, inputs // 2)
    return pairs_PoK.transpose(1, 2).reshape(outputs // _PANEL, -1).view(torch.uint8)


def _bytes_4(numbers_OI: torch.Tensor) -> torch.Tensor:
    outputs, inputs = numbers_OI.shape
    numbers_OI = F.pad(numbers_OI, (0, -inputs % 4))
    first, second = numbers_OI.view(outputs // _PANEL, 2, _HALF, -1).unbind(1)
    # A byte has an input of an output of each half, four bytes a pair of pairs: J i.
    bytes_PoI = (first & 15) | (second << 4)
    words_PJo = bytes_PoI.view(torch.int32).transpose(1, 2).contiguous()
    # Words of 16 bits go by i, so the bytes in the middle change places.
    middle = ((words_PJo & 0xFF00) << 8) | ((words_PJo >> 8) & 0xFF00)
    turned = (words_PJo & _OUTER_BYTES) | middle
    return turned.view(outputs // _PANEL, -1).view(torch.uint8)


def quantized_in_turns(w1_FD: QuantizedMatrix, w3_FD: QuantizedMatrix) -> QuantizedMatrix:
    """Two matrices as one, in turns of 16 outputs, as `CpuKernels.pack_pair` does."""
    return QuantizedMatrix(
        w1_FD.bits,
        _in_turns(w1_FD.numbers_OI, w3_FD.numbers_OI),
        _in_turns(w1_FD.scales_OG, w3_FD.scales_OG),
        w1_FD.dtype,
    )


def _in_turns(one_FX: torch.Tensor, other_FX: torch.Tensor) -> torch.Tensor:
    inner, width = one_FX.shape
    both = (F.pad(part, (0, 0, 0, -inner % _HALF)) for part in (one_FX, other_FX))
    return torch.stack([part.view(-1, _HALF, width) for part in both], dim=1).view(-1, width)
