"""A rank's loop in a thread of its own: phases, epochs, and who wants to know of its end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

import torch

from actors.patience import in_daemon_thread
from actors.ranks.actor_stats import Phase
from actors.ranks.epochs import Epoch, Epochs
from actors.ranks.process_group import join
from actors.ranks.rendezvous import Rendezvous
from model.exchange import Ranks
from model.placement import ExpertPlacement

logger = logging.getLogger(__name__)


class RankLife:
    """Ray's event loop calls it; only the loop's thread calls `_left` and `_run`."""

    def __init__(
        self, name: str, own_host: str, device: torch.device, on_failure: Callable[[], None]
    ) -> None:
        """Call `on_failure()` on the event loop where the loop fails for good."""
        self._name = name
        self._own_host = own_host
        self._device = device
        self._on_failure = on_failure
        self._thread: threading.Thread | None = None
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._watchers: list[asyncio.Future[None]] = []
        self._over = 0
        self._lost: set[int] = set()
        self.epochs = Epochs(self._left)
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

    async def meet(self, rendezvous: Rendezvous, ranks: Ranks, placement: ExpertPlacement) -> None:
        """Meet the other ranks for an epoch and offer it to the loop, which may be in another.

        Raises:
            RuntimeError: a rank did not come in time.
        """
        exchange = await in_daemon_thread(
            lambda: join(rendezvous, ranks, self._own_host, self._device)
        )
        self.epochs.offer(Epoch(rendezvous.epoch, exchange, placement))

    async def watch(self, epoch: int) -> bool:
        """Return once this rank has left `epoch` or its loop has ended: True if it has moved on."""
        while self._over < epoch and self.phase not in ("failed", "stopped"):
            future = asyncio.get_running_loop().create_future()
            self._watchers.append(future)
            await future
        return self._over >= epoch and epoch not in self._lost

    def _left(self, epoch: int, moved: bool) -> None:
        if not moved:
            self._lost.add(epoch)
        self._over = epoch
        self._tell(self._wake_watchers)

    def _run(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except Exception as error:
            logger.exception("%s failed", self._name)
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
