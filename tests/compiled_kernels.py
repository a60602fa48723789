"""The compiled kernels, for tests that are about them: every variant that this CPU can run."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from model.cpu_kernels.binary import load_variant
from model.cpu_kernels.library import CpuKernels

_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"}
_NEEDED = {
    "amx": {*_AVX512, "amx_tile", "amx_bf16"},
    "avx512": _AVX512,
    "avx2": {"avx2", "fma"},
}


def _cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


VARIANTS = [name for name, needed in _NEEDED.items() if needed <= _cpu_flags()]


def compiled_library(variant: str | None = None) -> ctypes.CDLL:
    """One library, the fastest if none is named; a failure where it could run and is not built.

    On a CPU without AVX2 there is nothing to run: a skip.
    """
    if not VARIANTS:
        pytest.skip("this CPU runs torch's kernels")
    variant = variant or VARIANTS[0]
    found = load_variant(variant)
    assert found is not None, f"the kernels for {variant} are not built: make setup"
    return found


@contextmanager
def kernels_in_use(variant: str, num_threads: int) -> Iterator[CpuKernels]:
    """The model runs on this variant of the kernels, with so many threads."""
    kernels = CpuKernels(compiled_library(variant), num_threads)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("model.cpu_kernels.in_use", "model.decode_layers"):
            patch.setattr(f"{module}.load_kernels", lambda: kernels)
        yield kernels


def variants_and_threads(*threads: int) -> list[tuple[str, int]]:
    """Parameters of a fixture around `kernels_in_use`."""
    return [(variant, count) for variant in VARIANTS or ["none"] for count in threads]
