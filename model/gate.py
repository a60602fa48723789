"""The learned layer that chooses each token's experts (Mixtral, arXiv 2401.04088, section 2.1).

Shape suffixes: T rows, D hidden, E experts, K experts per token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.cpu_kernels.decode_layer import PackedMatrix
from model.cpu_kernels.in_use import kernels_for
from model.linear import Linear


class Gate:
    """Top-k over the gate logits; weights are the softmax over the k chosen ones."""

    __slots__ = ("_kernels", "_linear", "_top_k")

    def __init__(self, weight_ED: torch.Tensor, top_k: int) -> None:
        self._linear = Linear(weight_ED)
        self._kernels = kernels_for(weight_ED)
        self._top_k = top_k

    @property
    def packed(self) -> PackedMatrix | None:
        """What the project's kernels read; None where they cannot."""
        return self._linear.packed

    def __call__(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (topk_ids_TK int64, topk_weights_TK fp32); the weights of a row sum to 1."""
        logits_TE = self._linear(x_TD)
        if self._kernels is not None:
            return self._kernels.top_k(logits_TE, self._top_k)
        top_TK, ids_TK = torch.topk(logits_TE.float(), self._top_k, dim=-1)
        return ids_TK, F.softmax(top_TK, dim=-1)
