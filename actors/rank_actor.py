"""What attention and expert actors share: identity, a loop in a thread of its own, its end."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable

import ray
import torch

from actors.actor_stats import ActorIdentity, Phase
from actors.epochs import Epochs
from actors.model_plan import ModelPlan
from actors.process_group import Rendezvous, join
from model.exchange import Exchange, Ranks

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


class RankLife:
    """A rank's loop in a thread of its own, over epochs or alone, and who wants to know of its end.

    Ray's event loop calls it; only the thread calls `_lost` and `_run`.
    """

    def __init__(self, identity: ActorIdentity, on_failure: Callable[[], None]) -> None:
        """Call `on_failure()` on the event loop where the loop fails for good."""
        self._identity = identity
        self._on_failure = on_failure
        self._thread: threading.Thread | None = None
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._watchers: list[asyncio.Future[None]] = []
        self._over = 0
        self.epochs = Epochs(self._lost)
        self.phase: Phase = "created"
        self.failure: str | None = None

    def start(self, loop: Callable[[], None]) -> None:
        """Start the thread; it is in phase `serving` until `loop` returns or raises."""
        self._event_loop = asyncio.get_running_loop()
        self.phase = "serving"
        self._thread = threading.Thread(target=self._run, args=(loop,), daemon=True)
        self._thread.start()

    def join_thread(self, timeout_s: float) -> None:
        """Wait for the thread's end, at most this long."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    async def meet(self, rendezvous: Rendezvous, ranks: Ranks, device: torch.device) -> Exchange:
        """Leave the epoch, meet the other ranks for the next, and let the loop begin it.

        Raises:
            RuntimeError: a rank did not come in time.
        """
        self.epochs.interrupt()
        exchange = await asyncio.to_thread(join, rendezvous, ranks, self._identity.node, device)
        self.epochs.begin(rendezvous.epoch, exchange)
        return exchange

    async def watch(self, epoch: int) -> None:
        """Return once `epoch` is over for this rank, or its loop has ended."""
        while self._over < epoch and self.phase not in ("failed", "stopped"):
            future = asyncio.get_running_loop().create_future()
            self._watchers.append(future)
            await future

    def _lost(self, epoch: int) -> None:
        self._over = epoch
        self._tell(self._wake_watchers)

    def _run(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except Exception as error:
            logger.exception("%s rank %d failed", self._identity.role, self._identity.rank)
            self.failure = f"{type(error).__name__}: {error}"
            self.phase = "failed"
            self._tell(self._on_failure)
        else:
            self.phase = "stopped"
        self._tell(self._wake_watchers)

    def _tell(self, callback: Callable[[], None]) -> None:
        assert self._event_loop is not None
        self._event_loop.call_soon_threadsafe(callback)

    def _wake_watchers(self) -> None:
        watchers, self._watchers = self._watchers, []
        for future in watchers:
            if not future.done():
                future.set_result(None)


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
