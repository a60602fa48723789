"""The experts one rank holds: SwiGLU feed-forward blocks over the rows that chose them.

Shape suffixes: R rows, D hidden, F expert hidden, K experts per token, N rows of one expert.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from model.linear import Linear


class Expert:
    """`w2(silu(w1 x) * (w3 x))` (Shazeer, arXiv 2002.05202); w1 and w3 stacked into one matrix."""

    __slots__ = ("_half", "_w2", "_w13")

    def __init__(self, w1_FD: torch.Tensor, w3_FD: torch.Tensor, w2_DF: torch.Tensor) -> None:
        self._half = w1_FD.shape[0]
        self._w13 = Linear(torch.cat((w1_FD, w3_FD)))
        self._w2 = Linear(w2_DF)

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return the expert's output for its rows, [N, D]."""
        h_N2F = self._w13(x_ND)
        return self._w2(F.silu(h_N2F[:, : self._half]).mul_(h_N2F[:, self._half :]))

    @property
    def num_bytes(self) -> int:
        """Bytes of weights held."""
        return self._w13.num_bytes + self._w2.num_bytes


class ExpertShard:
    """Some experts of some layers. Stateless between calls: rows in, weighted sums out."""

    def __init__(self, experts: dict[tuple[int, int], Expert]) -> None:
        self._experts = experts

    @property
    def held(self) -> Iterable[tuple[int, int]]:
        """The (layer, expert) pairs this shard can serve."""
        return self._experts.keys()

    @property
    def num_bytes(self) -> int:
        """Bytes of weights held."""
        return sum(expert.num_bytes for expert in self._experts.values())

    def forward(
        self, layer: int, x_RD: torch.Tensor, ids_RK: torch.Tensor, weights_RK: torch.Tensor
    ) -> torch.Tensor:
        """Return y_RD: for each row, the sum over its experts of weight * expert(row).

        `ids_RK` holds expert ids; -1 marks a choice that another rank serves. Experts run one
        after another, each product with all threads: at decode every one is bound by memory.
        """
        y_RD = torch.zeros_like(x_RD)
        rows_of: dict[int, list[int]] = {}
        slots_of: dict[int, list[int]] = {}
        top_k = ids_RK.shape[1]
        for slot, expert_id in enumerate(ids_RK.reshape(-1).tolist()):
            if expert_id >= 0:
                rows_of.setdefault(expert_id, []).append(slot // top_k)
                slots_of.setdefault(expert_id, []).append(slot)
        weights_S = weights_RK.reshape(-1)
        whole = x_RD.shape[0]
        for expert_id in sorted(rows_of):
            expert = self._experts[layer, expert_id]
            rows = rows_of[expert_id]
            weight_N1 = weights_S[slots_of[expert_id]].unsqueeze(1).to(x_RD.dtype)
            if len(rows) == whole:
                y_RD.addcmul_(expert(x_RD), weight_N1)
            else:
                rows_N = torch.tensor(rows, device=x_RD.device)
                out_ND = expert(x_RD.index_select(0, rows_N)).mul_(weight_N1)
                y_RD.index_add_(0, rows_N, out_ND)
        return y_RD
