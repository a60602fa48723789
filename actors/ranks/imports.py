"""What a rank's process imports before it is one: torch, and all that a rank may need."""

from __future__ import annotations

import gc

from actors.ranks.priority import step_back


def import_all(calm: bool) -> None:
    """Without the garbage collector, to which nothing of it ever falls.

    Looking through it again and again is a sixth of the import, and a tenth of a second each time
    later on, in the middle of a step. `calm`: behind all else that the machine has to do.
    """
    if calm:
        step_back()
    gc.disable()
    try:
        import actors.ranks.attention
        import actors.ranks.expert  # noqa: F401
    finally:
        gc.enable()
    gc.freeze()
