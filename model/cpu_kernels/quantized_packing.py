"""Quantized matrices in the form that the kernels read (panels.h has it in words).

Shape suffixes: O outputs, I inputs, G groups of inputs, P panels of 32 outputs, H halves of a
panel, o outputs of a half, K pairs of inputs, J pairs of pairs, i inputs of a pair.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.host_memory import empty_for_weights
from model.quantization import QuantizedMatrix

_PANEL, _HALF = 32, 16


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
    pairs_POKi = numbers_OI.view(outputs // _PANEL, _PANEL, inputs // 2, 2)
    return pairs_POKi.transpose(1, 2).reshape(outputs // _PANEL, -1).view(torch.uint8)


def _bytes_4(numbers_OI: torch.Tensor) -> torch.Tensor:
    outputs, inputs = numbers_OI.shape
    numbers_OI = F.pad(numbers_OI, (0, -inputs % 4))
    panels = outputs // _PANEL
    nibbles = (numbers_OI & 15).view(panels, 2, _HALF, -1, 2, 2)  # P H o J (pair) i
    words = nibbles.permute(0, 3, 4, 1, 2, 5).reshape(panels, -1, 4, _PANEL).to(torch.int32)
    shifted = words << torch.tensor([0, 4, 8, 12], dtype=torch.int32).view(4, 1)
    return shifted.sum(dim=2, dtype=torch.int32).to(torch.int16).view(panels, -1).view(torch.uint8)


def in_turns(w1_FD: torch.Tensor, w3_FD: torch.Tensor) -> torch.Tensor:
    """Two matrices as one, in turns of 16 outputs, as `CpuKernels.pack_pair` does."""
    inner, width = w1_FD.shape
    both = (F.pad(weight, (0, 0, 0, -inner % _HALF)) for weight in (w1_FD, w3_FD))
    return torch.stack([one.view(-1, _HALF, width) for one in both], dim=1).view(-1, width)
