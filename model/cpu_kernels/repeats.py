"""Repeats counted by the compiled library: what `ExpertRepeats` does, in one pass over the rows.

Shape suffixes: L layers, T rows, K experts per token.
"""

from __future__ import annotations

import ctypes

import torch

from model.cpu_kernels.binary import load_binary
from model.expert_repeats import NONE, ExpertRepeats

_SIGNATURE = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3 + [ctypes.c_void_p] * 3


class KernelExpertRepeats(ExpertRepeats):
    """Counts on the host, of layers with at most 127 experts."""

    def __init__(
        self,
        library: ctypes.CDLL,
        num_layers: int,
        num_experts: int,
        top_k: int,
        num_slots: int,
    ) -> None:
        super().__init__(num_layers, num_experts, top_k, num_slots, torch.device("cpu"))
        assert self._chosen_SKL.dtype == torch.int8, "the kernel's"
        self._count_repeats = library.windrose_count_repeats
        self._count_repeats.argtypes, self._count_repeats.restype = _SIGNATURE, None

    def count(
        self, ids_LTK: torch.Tensor, slots_T: torch.Tensor, previous_slots_T: torch.Tensor
    ) -> None:
        """Count rows of steps that have ended, in their order."""
        ids_LTK = ids_LTK.contiguous()
        slots_T, previous_slots_T = slots_T.contiguous(), previous_slots_T.contiguous()
        layers, rows, top_k = ids_LTK.shape
        self._count_repeats(
            ids_LTK.data_ptr(),
            slots_T.data_ptr(),
            previous_slots_T.data_ptr(),
            rows,
            layers,
            top_k,
            self._chosen_SKL.data_ptr(),
            self._first_L.data_ptr(),
            self._any_L.data_ptr(),
        )
        self._pairs += (previous_slots_T != NONE).sum()


def expert_repeats(
    num_layers: int, num_experts: int, top_k: int, num_slots: int, device: torch.device
) -> ExpertRepeats:
    """The compiled one where there is a library and the choices lie on the host."""
    library = load_binary() if device.type == "cpu" else None
    if library is None or num_experts > torch.iinfo(torch.int8).max:
        return ExpertRepeats(num_layers, num_experts, top_k, num_slots, device)
    return KernelExpertRepeats(library, num_layers, num_experts, top_k, num_slots)
