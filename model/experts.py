"""The experts one rank holds: SwiGLU feed-forward blocks over the rows that chose them.

Shape suffixes: R rows, D hidden, F expert hidden, K experts per token, S choices (row, k) that
are served here, N of those of one expert.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from model.cpu_kernels.in_use import kernels_for
from model.cpu_kernels.library import CpuKernels
from model.cpu_kernels.quantized_packing import pack_quantized, quantized_in_turns
from model.low_rank_experts import LowRankExpert, LowRankLayer, low_rank_expert
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
        """All three of as many bits: dense ones are rounded to `bits`, unless those are 16."""
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


AnyExpert: TypeAlias = Expert | PackedExpert | LowRankExpert


def make_expert(
    w1_FD: StoredMatrix, w3_FD: StoredMatrix, w2_DF: StoredMatrix, *, bits: int = 16
) -> AnyExpert:
    """Put an expert's matrices into the form that is fastest here, of so many bits a weight."""
    low_rank = low_rank_expert(w1_FD, w3_FD, w2_DF, bits)
    if low_rank is not None:
        return low_rank
    kernels = kernels_for(w1_FD)
    if (
        kernels is None
        or kernels_for(w2_DF) is None
        or not isinstance(w1_FD, torch.Tensor | QuantizedMatrix)
        or not isinstance(w3_FD, torch.Tensor | QuantizedMatrix)
        or not isinstance(w2_DF, torch.Tensor | QuantizedMatrix)
        or len({_bits_of(one, bits) for one in (w1_FD, w3_FD, w2_DF)}) > 1
    ):
        return Expert(w1_FD, w3_FD, w2_DF, bits=bits)
    return PackedExpert(kernels, w1_FD, w3_FD, w2_DF, bits=bits)


def _bits_of(matrix: torch.Tensor | QuantizedMatrix, bits: int) -> int:
    """Of its packed form: a checkpoint may have left some matrices as they were."""
    return matrix.bits if isinstance(matrix, QuantizedMatrix) else bits


class _PackedLayer:
    """The packed experts of one layer as the kernel takes them: an address per expert id.

    All of as many bits. They stay as long as this does: the kernel reads them without the GIL.
    """

    def __init__(self, experts: Mapping[int, PackedExpert]) -> None:
        self._experts = dict(experts)
        one = next(iter(experts.values()))
        self._kernels, self._inner, self._bits = one.kernels, one.inner, one.bits
        addresses = ctypes.c_void_p * (max(experts) + 1)
        self._w13_E, self._w2_E = addresses(), addresses()
        for expert_id, expert in experts.items():
            self._w13_E[expert_id] = expert.w13.data_ptr()
            self._w2_E[expert_id] = expert.w2.data_ptr()

    def __call__(
        self, x_RD: torch.Tensor, ids_RK: torch.Tensor, weights_RK: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sums over these experts; KeyError for any other."""
        return self._kernels.experts(
            x_RD, ids_RK, weights_RK, self._w13_E, self._w2_E, self._inner, self._bits
        )


class _OneByOne:
    """The experts of one layer that run one after another, each product with all threads."""

    def __init__(self, experts: Mapping[int, Expert]) -> None:
        self._experts = dict(experts)

    def __call__(
        self, x_RD: torch.Tensor, ids_RK: torch.Tensor, weights_RK: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sums over these experts; KeyError for any other."""
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
            self._experts[expert_id](part_ND)
            for expert_id, part_ND in zip(chosen.tolist(), parts, strict=True)
        ]
        out_SD = outs[0] if len(outs) == 1 else torch.cat(outs)
        weights_S = weights_RK.reshape(-1).index_select(0, slots_S).to(x_RD.dtype)
        return y_RD.index_add_(0, rows_S, out_SD.mul_(weights_S.unsqueeze(1)))


@dataclass(frozen=True, slots=True)
class _Group:
    """Experts of one layer that run together; what chose one of `others` is not for them."""

    run: _PackedLayer | LowRankLayer | _OneByOne
    others: torch.Tensor  # ids of the layer's experts in its other groups


class _Layer:
    """The experts of one layer, in as many groups as there are kinds of them."""

    def __init__(self, experts: Mapping[int, AnyExpert]) -> None:
        packed = {i: one for i, one in experts.items() if isinstance(one, PackedExpert)}
        low_rank = {i: one for i, one in experts.items() if isinstance(one, LowRankExpert)}
        apart = {i: one for i, one in experts.items() if isinstance(one, Expert)}
        runs: list[tuple[_PackedLayer | LowRankLayer | _OneByOne, Iterable[int]]] = []
        for bits in sorted({one.bits for one in packed.values()}):
            alike = {i: one for i, one in packed.items() if one.bits == bits}
            runs.append((_PackedLayer(alike), alike))
        if low_rank:
            runs.append((LowRankLayer(low_rank), low_rank))
        if apart:
            runs.append((_OneByOne(apart), apart))
        self._groups = [
            _Group(run, torch.tensor(sorted(set(experts) - set(own)), dtype=torch.int64))
            for run, own in runs
        ]

    def __call__(
        self, x_RD: torch.Tensor, ids_RK: torch.Tensor, weights_RK: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sums over these experts; KeyError for any other."""
        first, *rest = self._groups
        if not rest:
            return first.run(x_RD, ids_RK, weights_RK)
        sums = [
            group.run(x_RD, _without(ids_RK, group.others), weights_RK) for group in self._groups
        ]
        return torch.stack(sums).sum(dim=0)


def _without(ids_RK: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return ids_RK.masked_fill(torch.isin(ids_RK, others.to(ids_RK)), -1)


class ExpertShard:
    """Some experts of some layers. Stateless between calls: rows in, weighted sums out.

    Threads may add and remove experts while another runs `forward`, which keeps what it began with.
    """

    def __init__(self, experts: Mapping[tuple[int, int], AnyExpert]) -> None:
        self._changing = Lock()
        self._experts: Mapping[tuple[int, int], AnyExpert] = dict(experts)  # replaced, not changed
        self._layers = _layers(self._experts)

    @property
    def held(self) -> list[tuple[int, int]]:
        """The (layer, expert) pairs this shard can serve."""
        return list(self._experts)

    def add(self, other: ExpertShard) -> None:
        """Serve the other's experts as well."""
        with self._changing:
            self._experts = {**self._experts, **other._experts}
            self._layers = _layers(self._experts)

    def remove(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Give up the weights of these; pairs that are not held are ignored."""
        gone = set(pairs)
        with self._changing:
            kept = {pair: one for pair, one in self._experts.items() if pair not in gone}
            self._experts = kept
            self._layers = _layers(kept)

    @property
    def num_bytes(self) -> int:
        """Bytes of weights held."""
        return sum(expert.num_bytes for expert in self._experts.values())

    def forward(
        self, layer: int, x_RD: torch.Tensor, ids_RK: torch.Tensor, weights_RK: torch.Tensor
    ) -> torch.Tensor:
        """Return y_RD: for each row, the sum over its experts of weight * expert(row).

        `ids_RK` holds expert ids; -1 marks a choice that another rank serves. KeyError if one is
        not held.
        """
        return self._layers.get(layer, _NO_EXPERTS)(x_RD, ids_RK, weights_RK)


_NO_EXPERTS = _OneByOne({})


def _layers(experts: Mapping[tuple[int, int], AnyExpert]) -> dict[int, _Layer]:
    """Made anew for every change, so that a running `forward` keeps its own."""
    by_layer: dict[int, dict[int, AnyExpert]] = {}
    for (layer, expert_id), expert in experts.items():
        by_layer.setdefault(layer, {})[expert_id] = expert
    return {layer: _Layer(held) for layer, held in by_layer.items()}
