"""Exact counts of the rows each expert of each layer was chosen for, and of its repeats.

A decode step takes a millisecond or two, and a dozen tensor operations a twentieth of it: so what
the gates chose is only kept, and counted for many steps at once.
Shape suffixes: L layers, T rows, K experts per token, E experts.
"""

from __future__ import annotations

import threading

import torch

from model.cpu_kernels.repeats import expert_repeats
from model.expert_repeats import Repeats

_MOST_STEPS, _MOST_ROWS = 128, 4096  # that are kept before they are counted


class ExpertLoad:
    """Counts choices; over a step they sum to top_k * rows in every layer.

    One thread records; any other may ask for the totals, which are up to date.
    """

    def __init__(
        self, num_layers: int, num_experts: int, top_k: int, num_slots: int, device: torch.device
    ) -> None:
        """`num_slots`: tokens that the KV cache can hold."""
        self._num_experts = num_experts
        self._first_L1 = (torch.arange(num_layers, device=device) * num_experts)[:, None]
        self._total_LE = torch.zeros(num_layers * num_experts, dtype=torch.int64, device=device)
        self._repeats = expert_repeats(num_layers, num_experts, top_k, num_slots, device)
        self._lock = threading.Lock()
        self._nothing = [torch.empty(0, top_k, dtype=torch.int64, device=device)] * num_layers
        self._step = self._nothing.copy()  # ids by layer
        # Steps that are not counted yet: ids by layer, slots, slots before.
        self._steps: list[list[torch.Tensor]] = []
        self._slots: list[torch.Tensor] = []
        self._previous_slots: list[torch.Tensor] = []
        self._num_rows = 0

    def record(self, layer: int, ids_TK: torch.Tensor, first_row: int = 0) -> None:
        """Note one layer's choices, of rows from `first_row` on; counted if the step ends.

        Rows come in order. `ids_TK` must not change afterwards.
        """
        if first_row:
            ids_TK = torch.cat((self._step[layer], ids_TK))
        self._step[layer] = ids_TK  # of a step that was interrupted, and runs again, too

    def finish_step(self, slots_T: torch.Tensor, previous_slots_T: torch.Tensor) -> None:
        """Have what `record` noted in all layers counted: rows in the order of recording.

        For each row its slot in the KV cache, and that of the token before it (NONE: none).
        """
        with self._lock:
            self._steps.append(self._step)
            self._step = self._nothing.copy()
            self._slots.append(slots_T)
            self._previous_slots.append(previous_slots_T)
            self._num_rows += len(slots_T)
            if len(self._slots) >= _MOST_STEPS or self._num_rows >= _MOST_ROWS:
                self._count()

    @torch.inference_mode()
    def _count(self) -> None:
        if not self._slots:
            return
        ids_LTK = torch.stack([torch.cat(layer) for layer in zip(*self._steps, strict=True)])
        self._repeats.count(ids_LTK, torch.cat(self._slots), torch.cat(self._previous_slots))
        flat = (ids_LTK.flatten(1) + self._first_L1).reshape(-1)
        self._total_LE += torch.bincount(flat, minlength=self._total_LE.shape[0])
        for kept in (self._steps, self._slots, self._previous_slots):
            kept.clear()
        self._num_rows = 0

    def reset(self) -> None:
        """Forget everything counted."""
        with self._lock:
            self._count()
            self._total_LE.zero_()
            self._repeats.reset()

    def totals(self) -> list[list[int]]:
        """Rows per [layer][expert] since the start."""
        with self._lock:
            self._count()
            totals: list[list[int]] = self._total_LE.view(-1, self._num_experts).tolist()
        return totals

    def repeats(self) -> Repeats:
        """Consecutive tokens that went to the same expert, since the start."""
        with self._lock:
            self._count()
            return self._repeats.totals()
