"""Messages over the process groups of torch.distributed: gloo on the host, NCCL on GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import Work

from model.exchange import PeerLost

_NEVER_SENT_TAG = 1000
_AT_ONCE = timedelta(milliseconds=1)


class TorchGroup:
    """A process group, whose errors mean that a peer is lost."""

    def __init__(self, group: Any) -> None:  # its methods are not in the type stubs
        self._group = group

    def send(self, tensor: torch.Tensor, index: int, tag: int) -> TorchMessage:
        """Start sending a tensor. Raises PeerLost."""
        try:
            return TorchMessage(self._group.send([tensor], index, tag))
        except RuntimeError as error:
            raise PeerLost(str(error)) from error

    def receive(self, tensor: torch.Tensor, index: int, tag: int) -> TorchMessage:
        """Start receiving into a tensor. Raises PeerLost."""
        try:
            return TorchMessage(self._group.recv([tensor], index, tag))
        except RuntimeError as error:
            raise PeerLost(str(error)) from error

    def abort(self) -> None:
        """Fail what is under way, here and at the other ends. Any thread."""
        self._group.abort()


class GlooGroup(TorchGroup):
    """gloo's has no call to abort, but closes a pair on which a receive timed out."""

    def __init__(self, group: Any, others: Sequence[int]) -> None:
        """`others`: the indices of the other ranks."""
        super().__init__(group)
        self._others = others

    def abort(self) -> None:
        """Post every peer a receive that nobody answers."""
        for index in self._others:
            try:
                self._group.recv([torch.empty(1)], index, _NEVER_SENT_TAG).wait(_AT_ONCE)
            except RuntimeError:
                continue  # as intended: the pair is closed now, or was before


class TorchMessage:
    """A send or receive under way."""

    __slots__ = ("_work",)

    def __init__(self, work: Work) -> None:
        self._work = work

    def wait(self) -> None:
        """Block until it is done.

        Raises:
            PeerLost: the peer is gone, or hung for longer than the group's timeout.
        """
        try:
            self._work.wait()
        except RuntimeError as error:
            raise PeerLost(str(error)) from error
