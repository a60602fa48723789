"""The life of a rank's loop over epochs: run until a peer is lost or all move on, then the next.

An epoch is one set of process groups. When a rank is lost the epoch is over for all, and the
router makes those that are left meet again. A change of ranks without a loss is a move: the next
groups are formed beside the old ones, and all ranks go over at the same step.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from model.exchange import Exchange, LoopEnd, PeerLost
from model.placement import ExpertPlacement

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One set of process groups, and the placement in force as it begins."""

    number: int
    exchange: Exchange
    placement: ExpertPlacement


class Epochs:
    """Hands a loop one epoch after another; all methods but `run` are for other threads."""

    def __init__(self, on_over: Callable[[int, bool], None]) -> None:
        """Call `on_over(number, moved)` from the loop's thread whenever it has left an epoch."""
        self._on_over = on_over
        self._changed = threading.Condition()
        self._newest = 0
        self._next: Epoch | None = None
        self._current: Epoch | None = None
        self._left: Epoch | None = None
        self._stopped = False

    def offer(self, epoch: Epoch) -> None:
        """Let the loop go on with this epoch once it has left the one before; not with older ones.

        A meeting that was given up may still end, late: what it made is not wanted any more.
        """
        with self._changed:
            if epoch.number > self._newest:
                self._newest = epoch.number
                self._next = epoch
                self._changed.notify_all()

    def interrupt(self, newest: int) -> None:
        """Make the loop leave the epoch it is in, and have it begin none up to `newest`.

        Those may be met for still, by meetings that nobody waits for.
        """
        with self._changed:
            self._newest = max(self._newest, newest)
            self._next, current = None, self._current
        if current is not None:
            current.exchange.abort()

    def stop(self) -> None:
        """Let a loop that waits for an epoch end."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def run(self, loop: Callable[[Epoch], LoopEnd]) -> None:
        """Run `loop(epoch)` in every epoch until one ends in "stop", or `stop` while it waits."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._stopped)
                if self._next is None:
                    return
                epoch, self._next = self._next, None
                self._current = epoch
            moved = False
            try:
                moved = loop(epoch) == "move"
                if not moved:
                    return
            except PeerLost as lost:
                logger.warning("epoch %d is over: %s", epoch.number, lost)
                epoch.exchange.abort()  # peers that wait for this rank must not wait any longer
            finally:
                with self._changed:
                    self._current = None
            # A peer may still be reading what this rank said last: groups left by agreement stay
            # open until the next are left.
            self._left = epoch if moved else None
            self._on_over(epoch.number, moved)
