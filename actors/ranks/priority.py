"""Work that must not slow down what serves: threads that get what others leave of the cores."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

_LOWEST = 19  # to Linux, where priorities are a thread's own


def step_back() -> None:
    """Let the calling thread, and those it starts, run behind all others, for good."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)


def hurry(thread: threading.Thread) -> None:
    """Let a thread that has stepped back run as others do; only root may, others stay as slow."""
    if thread.native_id is not None:
        with suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, thread.native_id, 0)
