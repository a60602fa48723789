"""The best factors of a matrix, by singular value decomposition in fp32.

Shape suffixes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ops.compress.allocation import Shape, Spectrum


@dataclass(frozen=True, slots=True)
class Factorized:
    """Two factors in the matrix's dtype, and what they miss of it, rounding included."""

    first_RI: torch.Tensor
    second_OR: torch.Tensor
    squared_error: float  # of the product, in the Frobenius norm
    squared_norm: float  # of the matrix


def spectrum(weight_OI: torch.Tensor) -> Spectrum:
    """The matrix's errors at all ranks.

    Raises:
        ValueError: a weight is not finite.
    """
    values: np.ndarray = torch.linalg.svdvals(_tall(_finite(weight_OI))).cpu().numpy()
    return Spectrum.of(Shape(*weight_OI.shape), values)


def factorize(weight_OI: torch.Tensor, rank: int) -> Factorized:
    """Factors of the best matrix of this rank; each has the root of the singular values.

    So both are of the same size, which is what rounding them to few bits wants.

    Raises:
        ValueError: a weight is not finite.
    """
    exact_OI = _finite(weight_OI)
    left_OK, values_K, right_KI = _decompose(exact_OI)
    roots_R = values_K[:rank].sqrt()
    first_RI = (roots_R[:, None] * right_KI[:rank]).to(weight_OI.dtype)
    second_OR = (left_OK[:, :rank] * roots_R).to(weight_OI.dtype)
    missed_OI = exact_OI - second_OR.float() @ first_RI.float()
    return Factorized(first_RI, second_OR, _squared(missed_OI), _squared(exact_OI))


def _decompose(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    left, values, right = torch.linalg.svd(_tall(weight_OI), full_matrices=False)
    return (right.T, values, left.T) if _is_wide(weight_OI) else (left, values, right)


def _tall(weight: torch.Tensor) -> torch.Tensor:
    """The matrix, or its transpose: LAPACK takes twice as long for a wide one as for a tall one."""
    return weight.T.contiguous() if _is_wide(weight) else weight


def _is_wide(weight: torch.Tensor) -> bool:
    return weight.shape[0] < weight.shape[1]


def squared_norm(weight_OI: torch.Tensor) -> float:
    """Of a matrix that stays as it is."""
    return _squared(weight_OI.float())


def _squared(matrix: torch.Tensor) -> float:
    return float(matrix.square().sum(dtype=torch.float64))


def _finite(weight: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("a weight is not a finite number")
    return weight.float()
