"""Experts whose matrices are all factors, packed for the kernel that runs a layer's in one call.

Shape suffixes: R rows, D hidden, F expert hidden, K experts per token, E experts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch

from model.cpu_kernels.in_use import kernels_for
from model.cpu_kernels.library import CpuKernels
from model.cpu_kernels.mixture import LowRankAddresses
from model.cpu_kernels.quantized_packing import pack_quantized
from model.projection import Factors, Plain, StoredMatrix
from model.quantization import QuantizedMatrix, quantize


class LowRankExpert:
    """`w2(silu(w1 x) * (w3 x))`, each of the three the product of two packed factors."""

    __slots__ = ("_held", "addresses", "bits", "inner", "kernels", "num_bytes")

    def __init__(
        self, kernels: CpuKernels, w1_FD: Factors, w3_FD: Factors, w2_DF: Factors, bits: int
    ) -> None:
        first = w1_FD.first_RI
        self.kernels = kernels
        self.bits = first.bits if isinstance(first, QuantizedMatrix) else bits
        self.inner = w1_FD.shape[0]
        self.num_bytes = 0
        self._held: list[torch.Tensor] = []
        addresses = LowRankAddresses()
        for name, matrix in (("1", w1_FD), ("3", w3_FD), ("2", w2_DF)):
            setattr(addresses, f"first{name}", self._pack(matrix.first_RI))
            setattr(addresses, f"second{name}", self._pack(matrix.second_OR))
            setattr(addresses, f"rank{name}", matrix.first_RI.shape[0])
        self.addresses = addresses

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return the output for rows that all go through it, [N, D]."""
        ids_N1 = torch.zeros(len(x_ND), 1, dtype=torch.int64)
        return LowRankLayer({0: self})(x_ND, ids_N1, torch.ones(len(x_ND), 1))

    def _pack(self, weight: Plain) -> int:
        if isinstance(weight, torch.Tensor) and self.bits < 16:
            weight = quantize(weight, self.bits)
        if isinstance(weight, QuantizedMatrix):
            packed = pack_quantized(weight)
            self.num_bytes += weight.num_bytes
        else:
            packed = self.kernels.pack(weight)
            self.num_bytes += weight.numel() * weight.element_size()
        self._held.append(packed)
        return packed.data_ptr()


def low_rank_expert(
    w1_FD: StoredMatrix, w3_FD: StoredMatrix, w2_DF: StoredMatrix, bits: int
) -> LowRankExpert | None:
    """The packed expert; None where a matrix is dense, or the kernels cannot take a factor."""
    if not (
        isinstance(w1_FD, Factors) and isinstance(w3_FD, Factors) and isinstance(w2_DF, Factors)
    ):
        return None
    factors = [factor for one in (w1_FD, w3_FD, w2_DF) for factor in (one.first_RI, one.second_OR)]
    kernels = kernels_for(factors[0])
    if kernels is None or any(kernels_for(factor) is None for factor in factors):
        return None
    return LowRankExpert(kernels, w1_FD, w3_FD, w2_DF, bits)


class LowRankLayer:
    """A layer's packed low-rank experts as the kernel takes them; they stay as long as this."""

    def __init__(self, experts: Mapping[int, LowRankExpert]) -> None:
        self._experts = dict(experts)
        one = next(iter(experts.values()))
        self._kernels, self._inner, self._bits = one.kernels, one.inner, one.bits
        self._addresses_E: ctypes.Array[LowRankAddresses] = (
            LowRankAddresses * (max(experts) + 1)
        )()
        for expert_id, expert in experts.items():
            self._addresses_E[expert_id] = expert.addresses

    def __call__(
        self, x_RD: torch.Tensor, ids_RK: torch.Tensor, weights_RK: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sums over these experts; KeyError for any other."""
        return self._kernels.low_rank_experts(
            x_RD, ids_RK, weights_RK, self._addresses_E, self._inner, self._bits
        )
