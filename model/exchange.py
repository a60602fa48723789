"""Messages between the ranks of a pipeline: step headers on the host, rows on the data group.

A step header is what every attention rank tells every other rank before a step; it fixes how
many messages follow, so no rank ever waits for one that does not come.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple, Protocol

import torch
from torch.distributed import Work

_HEADER_TAG, _ROUTING_TAG, _ROWS_TAG, _RESULT_TAG, _NEVER_SENT_TAG = 1, 2, 3, 4, 5
_STOP = 1
_AT_ONCE = timedelta(milliseconds=1)


class PeerLost(RuntimeError):
    """A message of this epoch cannot arrive any more; only another epoch goes on."""


class Message:
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


class PointToPoint(Protocol):
    """What is used of a torch.distributed process group: tagged messages between two ranks."""

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int) -> Work:
        """Start sending one tensor to `rank`."""
        ...

    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int) -> Work:
        """Start receiving one tensor from `rank`."""
        ...

    def abort(self) -> None:
        """Fail what is under way, where the backend can."""
        ...


class StepHeader(NamedTuple):
    """What one attention rank brings to a step; `num_rows` 0 and not `stop`: a heartbeat."""

    step: int
    num_rows: int
    placement_version: int
    stop: bool


@dataclass(frozen=True, slots=True)
class Ranks:
    """Who is who in a pipeline: attention ranks come first, expert ranks after them."""

    num_attention: int
    num_expert: int
    own: int

    @property
    def attention(self) -> range:
        """Ranks of the attention actors."""
        return range(self.num_attention)

    @property
    def expert(self) -> range:
        """Ranks of the expert actors."""
        return range(self.num_attention, self.size)

    @property
    def size(self) -> int:
        """All ranks."""
        return self.num_attention + self.num_expert


class Exchange:
    """Point-to-point messages over torch.distributed process groups.

    `control` is always gloo, on host memory. `data` carries rows: gloo on CPU, NCCL on GPU.
    gloo accepts a message shorter than the buffer posted for it, so there routing and rows
    travel as one message (`one_message`); NCCL needs equal sizes, so routing goes first, over
    `control`, and tells the size.
    """

    def __init__(
        self, ranks: Ranks, control: PointToPoint, data: PointToPoint, *, one_message: bool
    ) -> None:
        self.ranks = ranks
        self.one_message = one_message
        self._control = control
        self._data = data
        self._step = 0

    def open_step(
        self, num_rows: int, placement_version: int, *, stop: bool = False
    ) -> list[StepHeader]:
        """Attention side: tell all ranks what this one brings, and learn what its peers bring.

        Returns the headers of all attention ranks, this one's included, in rank order.

        Raises:
            PeerLost: a peer is gone.
        """
        self._step += 1
        mine = StepHeader(self._step, num_rows, placement_version, stop)
        message = torch.tensor([self._step, num_rows, placement_version, _STOP if stop else 0])
        sends = [
            self._send(self._control, message, rank, _HEADER_TAG)
            for rank in range(self.ranks.size)
            if rank != self.ranks.own
        ]
        headers = self._receive_headers(mine)
        for message_sent in sends:
            message_sent.wait()
        return headers

    def await_step(self) -> list[StepHeader]:
        """Expert side: wait for the next step; returns the attention ranks' headers in order."""
        self._step += 1
        return self._receive_headers(None)

    def _receive_headers(self, mine: StepHeader | None) -> list[StepHeader]:
        buffers = [torch.empty(4, dtype=torch.int64) for _ in self.ranks.attention]
        works = [
            self._receive(self._control, buffers[rank], rank, _HEADER_TAG)
            for rank in self.ranks.attention
            if rank != self.ranks.own
        ]
        for message in works:
            message.wait()
        headers = []
        for rank, buffer in enumerate(buffers):
            if mine is not None and rank == self.ranks.own:
                headers.append(mine)
                continue
            step, num_rows, version, flags = buffer.tolist()
            if step != self._step:
                raise PeerLost(f"rank {rank} is at step {step}, not {self._step}")
            headers.append(StepHeader(step, num_rows, version, bool(flags & _STOP)))
        return headers

    def send_routing(self, message: torch.Tensor, rank: int) -> Message:
        """Send (count, ids, weights) ahead of the rows; only where messages are split."""
        return self._send(self._control, message, rank, _ROUTING_TAG)

    def receive_routing(self, message: torch.Tensor, rank: int) -> Message:
        """Receive what `send_routing` sent; the buffer may be longer than the message."""
        return self._receive(self._control, message, rank, _ROUTING_TAG)

    def send_rows(self, rows: torch.Tensor, rank: int) -> Message:
        """Send rows to an expert rank."""
        return self._send(self._data, rows, rank, _ROWS_TAG)

    def receive_rows(self, rows: torch.Tensor, rank: int) -> Message:
        """Receive rows from an attention rank."""
        return self._receive(self._data, rows, rank, _ROWS_TAG)

    def send_result(self, rows: torch.Tensor, rank: int) -> Message:
        """Send weighted sums back to an attention rank."""
        return self._send(self._data, rows, rank, _RESULT_TAG)

    def receive_result(self, rows: torch.Tensor, rank: int) -> Message:
        """Receive weighted sums from an expert rank."""
        return self._receive(self._data, rows, rank, _RESULT_TAG)

    def abort(self) -> None:
        """End the epoch for this rank, from any thread: all its messages fail, here and there.

        gloo has no call for it, but closes a pair on which a receive timed out; so one that
        nobody answers is posted to every peer.
        """
        for rank in range(self.ranks.size):
            if rank == self.ranks.own:
                continue
            try:
                message = torch.empty(1)
                self._control.recv([message], rank, _NEVER_SENT_TAG).wait(_AT_ONCE)
            except RuntimeError:
                continue  # as intended: the pair is closed now, or was before
        if self._data is not self._control:
            self._data.abort()

    @staticmethod
    def _send(group: PointToPoint, tensor: torch.Tensor, rank: int, tag: int) -> Message:
        try:
            return Message(group.send([tensor], rank, tag))
        except RuntimeError as error:
            raise PeerLost(str(error)) from error

    @staticmethod
    def _receive(group: PointToPoint, tensor: torch.Tensor, rank: int, tag: int) -> Message:
        try:
            return Message(group.recv([tensor], rank, tag))
        except RuntimeError as error:
            raise PeerLost(str(error)) from error
