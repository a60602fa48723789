"""What the host's allocator does with large tensors, where the defaults cost gigabytes."""

from __future__ import annotations

import ctypes
import math
import mmap

import numpy as np
import torch

from model import early_memory
from model.early_memory import HUGE_PAGE_BYTES


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros that, on the CPU, take memory only as they are written.

    torch.zeros writes every page at once; numpy's come from the kernel's zero page.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)


def empty_for_weights(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return memory on the CPU, not yet written, for what every step reads from end to end.

    Large ones get huge pages where the kernel gives them to those who ask: a core that reads
    memory faster than it finds its pages loses a tenth of the bandwidth and more.
    """
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes < HUGE_PAGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype)
    early = early_memory.take(size_bytes)
    if early is not None:
        return torch.frombuffer(early, dtype=torch.uint8).view(dtype).view(shape)
    # Pages that are never written take no memory; those of a shared mapping would stay small.
    area = mmap.mmap(-1, size_bytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE)
    unaligned = torch.frombuffer(area, dtype=torch.uint8)  # keeps the area
    start = -unaligned.data_ptr() % HUGE_PAGE_BYTES
    return unaligned[start : start + size_bytes].view(dtype).view(shape)


class Scratch:
    """Memory for what is read only to be copied, used again: its first touch costs more than that.

    For one thread at a time.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[torch.Tensor]] = {}
        self._taken: list[torch.Tensor] = []

    def take(self, size_bytes: int) -> torch.Tensor:
        """Return so many bytes on the CPU, not yet written."""
        free = self._free.get(size_bytes)
        taken = free.pop() if free else torch.empty(size_bytes, dtype=torch.uint8)
        self._taken.append(taken)
        return taken

    def take_back(self) -> None:
        """Nobody reads what has been taken any more."""
        for one in self._taken:
            self._free.setdefault(one.numel(), []).append(one)
        self._taken.clear()

    def leave(self) -> None:
        """What has been taken stays with whoever took it."""
        self._taken.clear()


def give_back_freed() -> None:
    """Return freed memory to the system: loading 1.6 GB leaves 0.6 GB more in glibc's heap."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)
