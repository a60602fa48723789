"""Messages between the ranks of a pipeline: step headers on the host, rows on the data group.

Every attention rank tells every other rank its step header before a step; it fixes how many
messages follow, so no rank ever waits for one that does not come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch

from model.step_header import PACKED_SIZE, StepHeader

_HEADER_TAG, _ROUTING_TAG, ROWS_TAG, RESULT_TAG, _BUSY_TAG = 1, 2, 3, 4, 5
HEAD_BYTES = 16  # of a message over sockets: its size and tag

LoopEnd = Literal["stop", "move"]  # why a rank's loop left its epoch without losing a peer


class PeerLost(RuntimeError):
    """A message of this epoch cannot arrive any more; only another epoch goes on."""


class Message(Protocol):
    """A send or receive under way."""

    def wait(self) -> None:
        """Block until it is done.

        Raises:
            PeerLost: the peer is gone, or hung for longer than the group's timeout.
        """
        ...


class PointToPoint(Protocol):
    """Tagged messages between two ranks of a group, which are named by their index in it."""

    def send(self, tensor: torch.Tensor, index: int, tag: int) -> Message:
        """Start sending a tensor. Raises PeerLost."""
        ...

    def receive(self, tensor: torch.Tensor, index: int, tag: int) -> Message:
        """Start receiving into a tensor. Raises PeerLost."""
        ...

    def abort(self) -> None:
        """Fail what is under way, here and at the other ends. Any thread."""
        ...


@runtime_checkable
class Sockets(PointToPoint, Protocol):
    """A group over sockets, on which the compiled library sends and receives by itself.

    It must not while a message is left to send: what it waits for may wait for that.
    """

    @property
    def num_unsent(self) -> int:
        """Messages of which the kernel has not taken everything."""
        ...

    def file(self, index: int) -> int:
        """The descriptor of the socket to a rank."""
        ...

    def send_rest(self, tensor: torch.Tensor, index: int, tag: int, num_sent: int) -> Message:
        """Go on sending a message of which the kernel has taken so many bytes, head included."""
        ...

    def lost(self, index: int, number: int) -> PeerLost:
        """What to raise where the library met this errno."""
        ...


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks that an epoch's groups connect, as one of them sees it.

    A rank keeps its number for life; its index in a process group is its place among the ranks
    that are there, attention before expert.
    """

    attention: tuple[int, ...]
    expert: tuple[int, ...]
    own: int

    @classmethod
    def of(cls, num_attention: int, num_expert: int, own: int) -> Ranks:
        """All ranks of a whole pipeline: attention ranks come first, expert ranks after them."""
        size = num_attention + num_expert
        return cls(tuple(range(num_attention)), tuple(range(num_attention, size)), own)

    @property
    def all(self) -> tuple[int, ...]:
        """Every rank, by index in the group."""
        return self.attention + self.expert

    @property
    def others(self) -> tuple[int, ...]:
        """Every rank but the own one."""
        return tuple(rank for rank in self.all if rank != self.own)

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return len(self.attention) + len(self.expert)

    def index(self, rank: int) -> int:
        """A rank's index in the process group."""
        return self.all.index(rank)


class Exchange:
    """Point-to-point messages over torch.distributed process groups.

    `control` is always gloo, on host memory. `data` carries rows: sockets or gloo on CPU, NCCL on
    GPU. On CPU a message may be shorter than the buffer posted for it, so routing and rows
    travel as one message (`one_message`); NCCL needs equal sizes, so routing goes first, over
    `control`, and tells the size. `sockets` is the data group where it is one of them. A peer of
    which nothing is heard for `patience_s` is taken for lost.
    """

    def __init__(
        self,
        ranks: Ranks,
        control: PointToPoint,
        data: PointToPoint,
        *,
        one_message: bool,
        patience_s: float = math.inf,
    ) -> None:
        self.ranks = ranks
        self.one_message = one_message
        self.patience_s = patience_s
        self._control = control
        self._data = data
        self._step = 0
        self._index = {rank: index for index, rank in enumerate(ranks.all)}
        self.sockets = data if one_message and isinstance(data, Sockets) else None

    def open_step(
        self,
        num_rows: int,
        placement_version: int,
        *,
        num_decodes: int = 0,
        next_epoch: int = 0,
        micro_batches: int = 1,
        stop: bool = False,
        asks_busy: bool = False,
    ) -> list[StepHeader]:
        """Attention side: tell all ranks what this one brings, and learn what its peers bring.

        Returns the headers of all attention ranks, this one's included, in rank order.

        Raises:
            PeerLost: a peer is gone.
        """
        self._step += 1
        mine = StepHeader(
            self._step,
            num_rows,
            num_decodes,
            placement_version,
            next_epoch,
            micro_batches,
            stop,
            asks_busy,
        )
        message = mine.packed()
        sends = [
            self._send(self._control, message, rank, _HEADER_TAG) for rank in self.ranks.others
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
        buffers = {
            rank: torch.empty(PACKED_SIZE, dtype=torch.int64)
            for rank in self.ranks.attention
            if rank != self.ranks.own
        }
        works = [
            self._receive(self._control, buffer, rank, _HEADER_TAG)
            for rank, buffer in buffers.items()
        ]
        for message in works:
            message.wait()
        headers = []
        for rank in self.ranks.attention:
            if mine is not None and rank == self.ranks.own:
                headers.append(mine)
                continue
            header = StepHeader.unpacked(buffers[rank])
            if header.step != self._step:
                raise PeerLost(f"rank {rank} is at step {header.step}, not {self._step}")
            headers.append(header)
        return headers

    def send_routing(self, message: torch.Tensor, rank: int) -> Message:
        """Send (count, ids, weights) ahead of the rows; only where messages are split."""
        return self._send(self._control, message, rank, _ROUTING_TAG)

    def receive_routing(self, message: torch.Tensor, rank: int) -> Message:
        """Receive what `send_routing` sent; the buffer may be longer than the message."""
        return self._receive(self._control, message, rank, _ROUTING_TAG)

    def send_rows(self, rows: torch.Tensor, rank: int) -> Message:
        """Send rows to an expert rank."""
        return self._send(self._data, rows, rank, ROWS_TAG)

    def receive_rows(self, rows: torch.Tensor, rank: int) -> Message:
        """Receive rows from an attention rank."""
        return self._receive(self._data, rows, rank, ROWS_TAG)

    def send_result(self, rows: torch.Tensor, rank: int) -> Message:
        """Send weighted sums back to an attention rank."""
        return self._send(self._data, rows, rank, RESULT_TAG)

    def receive_result(self, rows: torch.Tensor, rank: int) -> Message:
        """Receive weighted sums from an expert rank."""
        return self._receive(self._data, rows, rank, RESULT_TAG)

    def tell_busy(self, busy_s: float, ranks: Sequence[int]) -> None:
        """Expert side: tell attention ranks how long this one was busy in the step."""
        message = torch.tensor([busy_s], dtype=torch.float64)
        for sent in [self._send(self._control, message, rank, _BUSY_TAG) for rank in ranks]:
            sent.wait()

    def ask_busy(self) -> list[float]:
        """Attention side, after a step that it asked in: seconds each expert rank was busy.

        Raises:
            PeerLost: a peer is gone.
        """
        answers = [torch.empty(1, dtype=torch.float64) for _ in self.ranks.expert]
        works = [
            self._receive(self._control, answer, rank, _BUSY_TAG)
            for answer, rank in zip(answers, self.ranks.expert, strict=True)
        ]
        for message in works:
            message.wait()
        return [answer.item() for answer in answers]

    def abort(self) -> None:
        """End the epoch for this rank, from any thread: all its messages fail, here and there."""
        self._control.abort()
        if self._data is not self._control:
            self._data.abort()

    def _send(self, group: PointToPoint, tensor: torch.Tensor, rank: int, tag: int) -> Message:
        return group.send(tensor, self._index[rank], tag)

    def _receive(self, group: PointToPoint, tensor: torch.Tensor, rank: int, tag: int) -> Message:
        return group.receive(tensor, self._index[rank], tag)
