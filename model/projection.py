"""From weight matrices as a checkpoint stores them to what multiplies by them.

Shape suffixes: T rows, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from model.bitsandbytes_matrix import EightBitMatrix, FourBitMatrix
from model.linear import Linear
from model.quantization import QuantizedMatrix, side_by_side

Plain: TypeAlias = torch.Tensor | QuantizedMatrix  # which was rounded when it was read


@dataclass(frozen=True, slots=True)
class Factors:
    """The matrix `second_OR @ first_RI`, which is never multiplied out."""

    first_RI: Plain
    second_OR: Plain

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.first_RI.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows that they multiply."""
        return self.first_RI.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """[O, I]."""
        return self.second_OR.shape[0], self.first_RI.shape[1]


StoredMatrix: TypeAlias = Plain | Factors | FourBitMatrix | EightBitMatrix  # [O, I]


class Projection(Protocol):
    """`y_TO = x_TI @ weight_OI.T`, however the weight is held."""

    @property
    def num_bytes(self) -> int:
        """Bytes of weights held."""
        ...

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return y_TO in the dtype of x."""
        ...


def project(matrix: StoredMatrix, bits: int = 16) -> Projection:
    """Hold one matrix in the form that is fastest here; a dense one in so many bits a weight."""
    if isinstance(matrix, torch.Tensor | QuantizedMatrix):
        return Linear(matrix, bits)
    if isinstance(matrix, Factors):
        return LowRankLinear((matrix,), bits)
    return matrix.project()


def project_together(matrices: Sequence[StoredMatrix], bits: int = 16) -> Projection:
    """Hold matrices that multiply the same rows; their outputs come side by side."""
    plain = [matrix for matrix in matrices if isinstance(matrix, torch.Tensor)]
    if len(plain) == len(matrices):
        return Linear(torch.cat(plain), bits)
    rounded = [matrix for matrix in matrices if isinstance(matrix, QuantizedMatrix)]
    if len(rounded) == len(matrices):
        return Linear(side_by_side(rounded))
    own = [
        matrix
        for matrix in matrices
        if isinstance(matrix, torch.Tensor | QuantizedMatrix | Factors)
    ]
    if len(own) == len(matrices) and any(isinstance(one, Factors) for one in own):
        return LowRankLinear(own, bits)
    return SideBySide([project(matrix, bits) for matrix in matrices])


class LowRankLinear:
    """Matrices over the same rows, some of them factors; their outputs come side by side.

    The first factors of all, and the dense matrices, are one product. Between a factor and the
    next the rows are rounded to their dtype, as two linear layers in turn do.
    """

    __slots__ = ("_first", "_seconds", "_widths", "num_bytes")

    def __init__(self, matrices: Sequence[Plain | Factors], bits: int = 16) -> None:
        firsts = [one.first_RI if isinstance(one, Factors) else one for one in matrices]
        self._widths = [first.shape[0] for first in firsts]
        self._first = project_together(firsts, bits)
        self._seconds = [
            Linear(matrix.second_OR, bits) if isinstance(matrix, Factors) else None
            for matrix in matrices
        ]
        held = [second for second in self._seconds if second is not None]
        self.num_bytes = self._first.num_bytes + sum(second.num_bytes for second in held)

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return y_TO in the dtype of x."""
        parts = self._first(x_TI).split(self._widths, dim=-1)
        outs = [
            part if second is None else second(part)
            for part, second in zip(parts, self._seconds, strict=True)
        ]
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)


class SideBySide:
    """Several projections of the same rows."""

    __slots__ = ("_parts",)

    def __init__(self, parts: Sequence[Projection]) -> None:
        self._parts = parts

    @property
    def num_bytes(self) -> int:
        """Bytes of weights held."""
        return sum(part.num_bytes for part in self._parts)

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Return their outputs side by side."""
        return torch.cat([part(x_TI) for part in self._parts], dim=-1)
