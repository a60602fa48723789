"""The experts one rank holds: SwiGLU feed-forward blocks over the rows that chose them.

Shape suffixes: R rows, D hidden, F expert hidden, K experts per token, S choices (row, k) that
are served here, N of those of one expert.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from model.cpu_kernels.library import CpuKernels, kernels_for
from model.cpu_kernels.quantized_packing import pack_quantized, quantized_in_turns
from model.projection import StoredMatrix, project, project_together
from model.quantization import QuantizedMatrix, quantize


class Expert:
    """`w2(silu(w1 x) * (w3 x))` (Shazeer, arXiv 2002.05202) over its rows, by torch."""

    __slots__ = ("_w2", "_w13")

    def __init__(
        self, w1_FD: StoredMatrix, w3_FD: StoredMatrix, w2_DF: StoredMatrix, *, bits: int = 16
    ) -> None:
        self._w13 = project_together((w1_FD, w3_FD), bits)
        self._w2 = project(w2_DF, bits)

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return the expert's output for its rows, [N, D]."""
        gate_NF, up_NF = self._w13(x_ND).chunk(2, dim=-1)
        return self._w2(F.silu(gate_NF).mul_(up_NF))

    @property
    def num_bytes(self) -> int:
        """Bytes of weights held."""
        return self._w13.num_bytes + self._w2.num_bytes


class PackedExpert:
    """The same, packed for the kernel that runs all experts of a layer in one call."""

    __slots__ = ("bits", "inner", "kernels", "num_bytes", "w2", "w13")

    def __init__(
        self,
        kernels: CpuKernels,
        w1_FD: torch.Tensor | QuantizedMatrix,
        w3_FD: torch.Tensor | QuantizedMatrix,
        w2_DF: torch.Tensor | QuantizedMatrix,
        *,
        bits: int = 16,
    ) -> None:
        """All three dense, or all three quantized."""
        self.kernels = kernels
        self.inner = w1_FD.shape[0]
        self.bits = bits
        matrices = w1_FD, w3_FD, w2_DF
        dense = [one for one in matrices if isinstance(one, torch.Tensor)]
        if bits == 16 and dense:
            w1, w3, w2 = dense
            self.num_bytes = 3 * w1.numel() * w1.element_size()
            self.w13 = kernels.pack_pair(w1, w3)
            self.w2 = kernels.pack(w2)
            return
        first, third, second = (
            quantize(one, bits) if isinstance(one, torch.Tensor) else one for one in matrices
        )
        self.bits = second.bits
        both = quantized_in_turns(first, third)
        self.num_bytes = both.num_bytes + second.num_bytes
        self.w13, self.w2 = pack_quantized(both), pack_quantized(second)

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return the output for rows that all go through it, [N, D]."""
        address = ctypes.c_void_p * 1
        w13, w2 = address(self.w13.data_ptr()), address(self.w2.data_ptr())
        ids_N1 = torch.zeros(len(x_ND), 1, dtype=torch.int64)
        weights_N1 = torch.ones(len(x_ND), 1)
        return self.kernels.experts(x_ND, ids_N1, weights_N1, w13, w2, self.inner, self.bits)


def make_expert(
    w1_FD: StoredMatrix, w3_FD: StoredMatrix, w2_DF: StoredMatrix, *, bits: int = 16
) -> Expert | PackedExpert:
    """Put an expert's matrices into the form that is fastest here, of so many bits a weight."""
    kernels = kernels_for(w1_FD)
    if (
        kernels is None
        or kernels_for(w2_DF) is None
        or not isinstance(w1_FD, torch.Tensor | QuantizedMatrix)
        or not isinstance(w3_FD, torch.Tensor | QuantizedMatrix)
        or not isinstance(w2_DF, torch.Tensor | QuantizedMatrix)
    ):
        return Expert(w1_FD, w3_FD, w2_DF, bits=bits)
    return PackedExpert(kernels, w1_FD, w3_FD, w2_DF, bits=bits)


@dataclass(frozen=True, slots=True)
class _PackedLayer:
    """The packed experts of one layer as the kernel takes them: an address per expert id."""

    kernels: CpuKernels
    inner: int
    bits: int
    w13_E: ctypes.Array[ctypes.c_void_p]
    w2_E: ctypes.Array[ctypes.c_void_p]
    others: tuple[int, ...]  # the layer's experts that are not packed

    def __call__(
        self, x_RD: torch.Tensor, ids_RK: torch.Tensor, weights_RK: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sums over the packed experts; KeyError for any other."""
        return self.kernels.experts(
            x_RD, ids_RK, weights_RK, self.w13_E, self.w2_E, self.inner, self.bits
        )


class ExpertShard:
    """Some experts of some layers. Stateless between calls: rows in, weighted sums out.

    One thread may add and remove experts while another runs `forward` on those that stay.
    """

    def __init__(self, experts: Mapping[tuple[int, int], Expert | PackedExpert]) -> None:
        self._experts = dict(experts)
        self._packed = _packed_layers(self._experts)

    @property
    def held(self) -> list[tuple[int, int]]:
        """The (layer, expert) pairs this shard can serve."""
        return list(self._experts)

    def add(self, other: ExpertShard) -> None:
        """Serve the other's experts as well."""
        self._experts.update(other._experts)
        self._packed = _packed_layers(self._experts)

    def remove(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Give up the weights of these; pairs that are not held are ignored."""
        for pair in pairs:
            self._experts.pop(pair, None)
        self._packed = _packed_layers(self._experts)

    @property
    def num_bytes(self) -> int:
        """Bytes of weights held."""
        return sum(expert.num_bytes for expert in list(self._experts.values()))

    def forward(
        self, layer: int, x_RD: torch.Tensor, ids_RK: torch.Tensor, weights_RK: torch.Tensor
    ) -> torch.Tensor:
        """Return y_RD: for each row, the sum over its experts of weight * expert(row).

        `ids_RK` holds expert ids; -1 marks a choice that another rank serves. KeyError if one is
        not held.
        """
        packed = self._packed.get(layer)
        if packed is None:
            return self._one_by_one(layer, x_RD, ids_RK, weights_RK)
        if not packed.others:
            return packed(x_RD, ids_RK, weights_RK)
        apart_RK = torch.isin(ids_RK, torch.tensor(packed.others, dtype=ids_RK.dtype))
        y_RD = packed(x_RD, ids_RK.masked_fill(apart_RK, -1), weights_RK)
        return y_RD.add_(
            self._one_by_one(layer, x_RD, ids_RK.masked_fill(~apart_RK, -1), weights_RK)
        )

    def _one_by_one(
        self, layer: int, x_RD: torch.Tensor, ids_RK: torch.Tensor, weights_RK: torch.Tensor
    ) -> torch.Tensor:
        """Run one expert after another, each product with all threads."""
        top_k = ids_RK.shape[1]
        ids_S = ids_RK.cpu().numpy().reshape(-1)
        order_S = np.argsort(ids_S, kind="stable")  # expert-major; the -1s come first
        counts_E = np.bincount(ids_S + 1, minlength=1)
        order_S = order_S[counts_E[0] :]
        y_RD = torch.zeros_like(x_RD)
        if not len(order_S):
            return y_RD
        chosen = np.flatnonzero(counts_E[1:])
        counts = counts_E[1:][chosen]
        slots_S = torch.from_numpy(order_S).to(x_RD.device)
        rows_S = slots_S // top_k
        parts = x_RD.index_select(0, rows_S).split(counts.tolist())
        outs = [
            self._experts[layer, expert_id](part_ND)
            for expert_id, part_ND in zip(chosen.tolist(), parts, strict=True)
        ]
        out_SD = outs[0] if len(outs) == 1 else torch.cat(outs)
        weights_S = weights_RK.reshape(-1).index_select(0, slots_S).to(x_RD.dtype)
        return y_RD.index_add_(0, rows_S, out_SD.mul_(weights_S.unsqueeze(1)))


def _packed_layers(
    experts: Mapping[tuple[int, int], Expert | PackedExpert],
) -> dict[int, _PackedLayer]:
    """The layers with packed experts, made anew so that a running `forward` keeps its own.

    A checkpoint may hold some experts of a layer as factors or quantized, and others not.
    """
    by_layer: dict[int, dict[int, PackedExpert]] = {}
    others: dict[int, list[int]] = {}
    for (layer, expert_id), expert in experts.items():
        if isinstance(expert, PackedExpert):
            by_layer.setdefault(layer, {})[expert_id] = expert
        else:
            others.setdefault(layer, []).append(expert_id)
    layers = {}
    for layer, held in by_layer.items():
        addresses = ctypes.c_void_p * (max(held) + 1)
        one = next(iter(held.values()))
        packed = _PackedLayer(
            one.kernels,
            one.inner,
            one.bits,
            addresses(),
            addresses(),
            tuple(others.get(layer, ())),
        )
        for expert_id, expert in held.items():
            packed.w13_E[expert_id] = expert.w13.data_ptr()
            packed.w2_E[expert_id] = expert.w2.data_ptr()
        layers[layer] = packed
    return layers
