"""Finding the compiled kernels; without torch, so that planning can ask for them."""

from __future__ import annotations

import ctypes
import functools
import importlib.util

VARIANTS = ("amx", "avx512", "avx2")  # of the same kernels, the fastest first


@functools.cache
def load_binary() -> ctypes.CDLL | None:
    """The fastest library for this CPU, or None where none was built or none can run here."""
    for variant in VARIANTS:
        library = load_variant(variant)
        if library is not None:
            return library
    return None


@functools.cache
def load_variant(variant: str) -> ctypes.CDLL | None:
    """The library built for one kind of CPU, or None where it was not or this CPU is another."""
    found = importlib.util.find_spec(f"model.cpu_kernels._{variant}")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    return library if library.windrose_supported() else None
