"""Finding the compiled kernels; without torch, so that planning can ask for them."""

from __future__ import annotations

import ctypes
import functools
import importlib.util


@functools.cache
def load_binary() -> ctypes.CDLL | None:
    """The compiled library, or None where it was not built or this CPU cannot run it."""
    found = importlib.util.find_spec("model.cpu_kernels._library")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    return library if library.windrose_supported() else None
