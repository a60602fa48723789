"""What the actors write, at the terminal of the process that deployed them.

Ray's monitor reads the stderr of every process of this driver's job on every machine and sends it
here. Ray would print it with a prefix of its own, and with it all that Serve says of itself.
"""

from __future__ import annotations

import sys
from typing import Any

from actors.log_lines import is_own


def show_own_lines() -> None:
    """From now on print our processes' lines, as they were written; not others'. After ray.init.

    Ray must have been told `log_to_driver=True`.
    """
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    dispatcher.remove_handler("ray_print_logs")
    dispatcher.add_handler("windrose", _show)


def hide_ray_lines() -> None:
    """Print nothing more that Ray says of itself: when Serve ends it calls its own end a failure.

    It kills its controller while calls to it are under way, which Ray tells every driver of.
    """
    from ray._private import worker

    worker._worker_logs_enabled = False  # as Ray's debugger has it


def _show(data: dict[str, Any]) -> None:
    if not data.get("is_err", False):
        return
    own = [line.rstrip("\n") for line in data["lines"] if is_own(line)]
    if own:
        print("\n".join(own), file=sys.stderr, flush=True)  # noqa: T201  # this is the terminal's
