"""Where the ranks of an epoch meet.

torch is imported when the store is opened: the router's process does without it until then, and
for good where the experts live with attention.
"""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from configs.process_settings import CpuTransport

if TYPE_CHECKING:
    from torch.distributed import TCPStore


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the ranks of one epoch meet: the store's address, and how long they may take.

    `cpu_transport`: what carries their rows where there is no GPU.
    """

    host: str
    port: int
    epoch: int
    timeout_s: float
    cpu_transport: CpuTransport = "sockets"


def prepare() -> None:
    """Begin to import, in a thread, what `host_store` needs."""
    threading.Thread(
        target=importlib.import_module, args=("torch.distributed",), daemon=True
    ).start()


def host_store(host: str, timeout_s: float) -> TCPStore:
    """Open the store in this process, on a free port of `host`; the router keeps it alive."""
    from torch.distributed import TCPStore

    return TCPStore(
        host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
    )
