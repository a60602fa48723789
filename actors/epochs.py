"""The life of a rank's loop over epochs: run until a peer is lost, wait for the next group.

An epoch is one set of process groups. When a rank is lost the epoch is over for all; the router
replaces it and makes all ranks meet again, and each goes on where it stood.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from model.exchange import Exchange, PeerLost

logger = logging.getLogger(__name__)


class Epochs:
    """Hands a loop one exchange after another; `begin` and `interrupt` are for other threads."""

    def __init__(self, on_lost: Callable[[int], None]) -> None:
        """Call `on_lost(epoch)` from the loop's thread whenever the loop had to leave one."""
        self._on_lost = on_lost
        self._changed = threading.Condition()
        self._next: tuple[int, Exchange] | None = None
        self._current: Exchange | None = None
        self._stopped = False

    def begin(self, epoch: int, exchange: Exchange) -> None:
        """Let the loop go on over this exchange as soon as it has left the one before."""
        with self._changed:
            self._next = (epoch, exchange)
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Make the loop leave the epoch it is in, and forget one that it has not begun."""
        with self._changed:
            self._next, exchange = None, self._current
        if exchange is not None:
            exchange.abort()

    def stop(self) -> None:
        """Let a loop that waits for an epoch end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def run(self, loop: Callable[[Exchange], None]) -> None:
        """Run `loop(exchange)` in every epoch until it returns, or `stop` while it waits."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._stopped)
                if self._next is None:
                    return
                (epoch, exchange), self._next = self._next, None
                self._current = exchange
            try:
                loop(exchange)
            except PeerLost as lost:
                logger.warning("epoch %d is over: %s", epoch, lost)
                exchange.abort()  # peers that wait for this rank must not wait for their timeout
            else:
                return
            finally:
                with self._changed:
                    self._current = None
            self._on_lost(epoch)
