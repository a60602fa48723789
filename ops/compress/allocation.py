"""How much rank each matrix gets of a budget of parameters. Pure: spectra in, ranks out.

The error of a matrix is its relative squared error in the Frobenius norm: by the theorem of Eckart
and Young the share of its squared singular values that a rank leaves out. The sum over all
matrices is made small, each step going to the matrix that gains most for a parameter.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a matrix; a rank of None means that it stays dense."""

    outputs: int
    inputs: int

    def parameters(self, rank: int | None) -> int:
        """What the matrix takes, or its factors of this rank."""
        if rank is None:
            return self.outputs * self.inputs
        return rank * (self.outputs + self.inputs)

    def rank_or_dense(self, rank: int) -> int | None:
        """The rank, or None where its factors would be no smaller than the matrix."""
        return rank if self.parameters(rank) < self.parameters(None) else None


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """`left_R[r]` is a matrix's error at rank r, from 1 at none down to 0."""

    shape: Shape
    left_R: np.ndarray  # fp64 [min(outputs, inputs) + 1]

    @classmethod
    def of(cls, shape: Shape, singular_values: np.ndarray) -> Spectrum:
        """From the singular values, largest first; a matrix of zeros loses nothing."""
        energies = np.square(singular_values.astype(np.float64))
        left = np.append(np.cumsum(energies[::-1])[::-1], 0.0)
        return cls(shape, left / left[0] if left[0] else left)

    def error(self, rank: int | None) -> float:
        """Relative squared error at a rank."""
        return 0.0 if rank is None else float(self.left_R[min(rank, len(self.left_R) - 1)])


def same_rank(shapes: Mapping[str, Shape], rank: int) -> dict[str, int | None]:
    """One rank for all matrices, as long as that makes them smaller."""
    return {name: shape.rank_or_dense(rank) for name, shape in shapes.items()}


def parameters_at(shapes: Mapping[str, Shape], ranks: Mapping[str, int | None]) -> int:
    """What all matrices take together."""
    return sum(shape.parameters(ranks[name]) for name, shape in shapes.items())


def spend(spectra: Mapping[str, Spectrum], budget: int, step: int) -> dict[str, int | None]:
    """Ranks, multiples of `step`, at which all matrices take `budget` parameters at most.

    Every matrix begins at one step. What a further step gains is the error it takes off for each
    parameter; the largest gain goes first, and what does not fit any more is passed over. A matrix
    that one more step would make no smaller than dense becomes dense instead.

    Raises:
        ValueError: even one step each takes more.
    """
    shapes = {name: one.shape for name, one in spectra.items()}
    ranks = same_rank(shapes, step)
    left = budget - parameters_at(shapes, ranks)
    if left < 0:
        raise ValueError(f"{budget} parameters are fewer than rank {step} everywhere takes")
    offers: list[tuple[float, str, int | None, int]] = []

    def offer(name: str) -> None:
        one, rank = spectra[name], ranks[name]
        if rank is None:
            return
        more = one.shape.rank_or_dense(rank + step)
        cost = one.shape.parameters(more) - one.shape.parameters(rank)
        gain = one.error(rank) - one.error(more)
        heapq.heappush(offers, (-gain / cost, name, more, cost))

    for name in spectra:
        offer(name)
    while offers:
        _, name, rank, cost = heapq.heappop(offers)
        if cost <= left:
            left -= cost
            ranks[name] = rank
            offer(name)
    return ranks
