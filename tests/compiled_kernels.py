"""The compiled kernels, for tests that are about them."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from model.cpu_kernels.binary import load_binary

_NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"}


def compiled_library() -> ctypes.CDLL:
    """The library; a failure where it could run and is not built, a skip where it cannot run."""
    found = load_binary()
    if found is None:
        flags = _cpu_flags()
        # With AMX oneDNN is preferred; without AVX512-BF16 there is nothing to test.
        can_run = flags >= _NEEDED and "amx_bf16" not in flags
        assert not can_run, "the kernels are not built: make setup"
        pytest.skip("this CPU runs torch's kernels")
    return found


def _cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
