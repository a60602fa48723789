"""Exact counts of the rows each expert of each layer was chosen for.

Shape suffixes: L layers, T rows, K experts per token, E experts.
"""

from __future__ import annotations

import torch


class ExpertLoad:
    """Counts choices; over a step they sum to top_k * rows in every layer."""

    def __init__(
        self, num_layers: int, num_experts: int, top_k: int, max_rows: int, device: torch.device
    ) -> None:
        self._ids_LTK = torch.zeros(num_layers, max_rows, top_k, dtype=torch.int64, device=device)
        self._first_L11 = (torch.arange(num_layers, device=device) * num_experts)[:, None, None]
        self._num_experts = num_experts
        self._total_LE = torch.zeros(num_layers * num_experts, dtype=torch.int64, device=device)

    def record(self, layer: int, ids_TK: torch.Tensor, first_row: int = 0) -> None:
        """Note one layer's choices, of rows from `first_row` on; counted when the step ends."""
        self._ids_LTK[layer, first_row : first_row + ids_TK.shape[0]] = ids_TK

    def finish_step(self, num_rows: int) -> None:
        """Count what `record` noted in all layers: one operation a step."""
        flat = (self._ids_LTK[:, :num_rows] + self._first_L11).reshape(-1)
        self._total_LE += torch.bincount(flat, minlength=self._total_LE.shape[0])

    def reset(self) -> None:
        """Forget everything counted."""
        self._total_LE.zero_()

    def totals(self) -> list[list[int]]:
        """Rows per [layer][expert] since the start."""
        totals: list[list[int]] = self._total_LE.view(-1, self._num_experts).tolist()
        return totals
