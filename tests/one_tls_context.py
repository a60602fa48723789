"""The certificates that clients trust, read once for a process instead of for every client."""

from __future__ import annotations

import functools
import ssl
from typing import Any


def share_tls_context() -> None:
    """Let all httpx clients of this process have the same context.

    httpx makes one for every client, and for every httpx.get(): 20 ms of a core, to no end where
    nothing speaks TLS. Tests ask some hundred times a second while they wait for something.
    """
    module: Any = ssl
    module.create_default_context = functools.cache(ssl.create_default_context)
