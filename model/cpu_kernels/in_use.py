"""Which kernels this process's arithmetic uses, and with how many threads."""

from __future__ import annotations

import functools
from typing import Protocol

import torch

from model.cpu_kernels.binary import load_binary
from model.cpu_kernels.library import CpuKernels


@functools.cache
def load_kernels() -> CpuKernels | None:
    """The process's kernels, or None where they were not built or this CPU cannot run them."""
    binary = load_binary()
    return None if binary is None else CpuKernels(binary)


def use_threads(num_threads: int, dtype: torch.dtype, *, others_too: bool = False) -> None:
    """Give this process's arithmetic in `dtype` so many threads.

    Where the kernels do the work, torch's own operations beside them are small and get one:
    OpenMP's threads wait for each other even when one has lost its core to another process.
    `others_too`: products are another library's, which runs on OpenMP.
    """
    kernels = load_kernels() if dtype == torch.bfloat16 else None
    if kernels is not None:
        kernels.num_threads = num_threads
    torch.set_num_threads(num_threads if kernels is None or others_too else 1)


class HeldMatrix(Protocol):
    """A weight, however it is stored; `dtype` is that of the rows it is for."""

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """[O, I]."""
        ...


def kernels_for(weight: HeldMatrix) -> CpuKernels | None:
    """The kernels, if they can work on such a weight: bf16 on the CPU, an even number of inputs."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or weight.shape[-1] % 2:
        return None
    return load_kernels()
