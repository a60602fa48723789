"""The experts one rank holds: SwiGLU feed-forward blocks over the rows that chose them.

Shape suffixes: R rows, D hidden, F expert hidden, K experts per token, S choices (row, k) that
are served here, N of those of one expert.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F

from model.linear import Linear


class Expert:
    """`w2(silu(w1 x) * (w3 x))` (Shazeer, arXiv 2002.05202); w1 and w3 stacked into one matrix."""

    __slots__ = ("_w2", "_w13")

    def __init__(self, w1_FD: torch.Tensor, w3_FD: torch.Tensor, w2_DF: torch.Tensor) -> None:
        self._w13 = Linear(torch.cat((w1_FD, w3_FD)))
        self._w2 = Linear(w2_DF)

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return the expert's output for its rows, [N, D]."""
        gate_NF, up_NF = self._w13(x_ND).chunk(2, dim=-1)
        return self._w2(F.silu(gate_NF).mul_(up_NF))

    @property
    def num_bytes(self) -> int:
        """Bytes of weights held."""
        return self._w13.num_bytes + self._w2.num_bytes


class ExpertShard:
    """Some experts of some layers. Stateless between calls: rows in, weighted sums out.

    One thread may add and remove experts while another runs `forward` on those that stay.
    """

    def __init__(self, experts: dict[tuple[int, int], Expert]) -> None:
        self._experts = experts

    @property
    def held(self) -> list[tuple[int, int]]:
        """The (layer, expert) pairs this shard can serve."""
        return list(self._experts)

    def add(self, other: ExpertShard) -> None:
        """Serve the other's experts as well."""
        self._experts.update(other._experts)

    def remove(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Give up the weights of these; pairs that are not held are ignored."""
        for pair in pairs:
            self._experts.pop(pair, None)

    @property
    def num_bytes(self) -> int:
        """Bytes of weights held."""
        return sum(expert.num_bytes for expert in list(self._experts.values()))

    def forward(
        self, layer: int, x_RD: torch.Tensor, ids_RK: torch.Tensor, weights_RK: torch.Tensor
    ) -> torch.Tensor:
        """Return y_RD: for each row, the sum over its experts of weight * expert(row).

        `ids_RK` holds expert ids; -1 marks a choice that another rank serves. Experts run one
        after another, each product with all threads: at decode every one is bound by memory.
        """
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
