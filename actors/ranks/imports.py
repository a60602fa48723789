"""What a rank's process imports before it is one: torch, and all that a rank may need."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from types import ModuleType

from actors.ranks.priority import step_back

# What torch's operators would do to tensors without data, which only a compiler asks for. To import
# and register it takes torch a quarter of its import.
_FOR_COMPILERS = "_meta_registrations"


def import_all(calm: bool) -> None:
    """Without the garbage collector, to which nothing of it ever falls.

    Looking through it again and again is a sixth of the import, and a tenth of a second each time
    later on, in the middle of a step. `calm`: behind all else that the machine has to do.
    """
    if calm:
        step_back()
    gc.disable()
    try:
        import_torch()
        import actors.ranks.attention
        import actors.ranks.expert  # noqa: F401
    finally:
        gc.enable()
    gc.freeze()


def import_torch() -> None:
    """Import it without what is for compilers; whoever needs that can still import it himself."""
    if "torch" in sys.modules:
        return
    left_out = f"torch.{_FOR_COMPILERS}"
    sys.modules[left_out] = stand_in = ModuleType(left_out)
    try:
        torch = import_module("torch")
    finally:
        del sys.modules[left_out]
    if getattr(torch, _FOR_COMPILERS, None) is stand_in:
        delattr(torch, _FOR_COMPILERS)
