"""From weight matrices as a checkpoint stores them to what multiplies by them.

Shape suffixes: T rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import torch

from model.linear import Linear

StoredMatrix: TypeAlias = torch.Tensor  # [O, I]


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
    """Hold one matrix in the form that is fastest here, of so many bits a weight."""
    return Linear(matrix, bits)


def project_together(matrices: Sequence[StoredMatrix], bits: int = 16) -> Projection:
    """Hold matrices that multiply the same rows; their outputs come side by side."""
    return Linear(torch.cat(tuple(matrices)), bits)
