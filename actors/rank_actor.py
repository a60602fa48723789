"""What attention and expert actors share: identity, a loop in a thread of its own, its end."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

import ray
import torch

from actors.actor_stats import ActorIdentity, Phase
from actors.model_plan import ModelPlan

logger = logging.getLogger(__name__)


def own_device(plan: ModelPlan) -> torch.device:
    """The device Ray gave this process: its one visible GPU, or the CPU."""
    return torch.device("cuda", 0) if plan.device == "cuda" else torch.device("cpu")


class Progress:
    """Bytes of weights read so far, written by the loading thread."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self.read_bytes = 0

    def __call__(self, num_bytes: int) -> None:
        """Count one tensor."""
        self.read_bytes += num_bytes


class LoopThread:
    """Runs one function in a thread and remembers how it ended."""

    def __init__(self, identity: ActorIdentity, on_failure: Callable[[str], None]) -> None:
        self._identity = identity
        self._on_failure = on_failure
        self._thread: threading.Thread | None = None
        self.phase: Phase = "created"
        self.failure: str | None = None

    def start(self, loop: Callable[[], None]) -> None:
        """Start the thread; it is in phase `serving` until `loop` returns or raises."""
        self.phase = "serving"
        self._thread = threading.Thread(target=self._run, args=(loop,), daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end, at most this long."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except Exception as error:
            logger.exception("%s rank %d failed", self._identity.role, self._identity.rank)
            self.failure = f"{type(error).__name__}: {error}"
            self.phase = "failed"
            self._on_failure(self.failure)
        else:
            self.phase = "stopped"


def identify(pipeline: str, rank: int, plan: ModelPlan) -> ActorIdentity:
    """This process, as other processes get to know it."""
    return ActorIdentity(
        pipeline=pipeline,
        rank=rank,
        role="attention" if rank < plan.num_attention else "expert",
        pid=os.getpid(),
        node=ray.util.get_node_ip_address(),
        device=str(own_device(plan)),
    )
