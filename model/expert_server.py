"""The expert side of the exact dispatcher: rows in, weighted sums out, layer after layer.

Shape suffixes: N rows of one attention rank, R rows of all, D hidden, K experts per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from time import perf_counter

import torch

from model.cpu_kernels.row_inbox import make_row_inbox
from model.exchange import Exchange, LoopEnd, Message
from model.experts import ExpertShard
from model.micro_batch import even_sizes
from model.role_times import RoleTimes
from model.row_inbox import RowInbox
from model.row_message import MessageParts, RowShape
from model.step_header import StepHeader, agreed_micro_batches, all_move


@dataclass(frozen=True, slots=True)
class _Task:
    """Rows to serve: of one layer and micro-batch, at most so many of each attention rank."""

    layer: int
    most_rows: Mapping[int, int]


class ExpertServer:
    """Serves one step at a time. Sees (layer, expert, rows), never a request.

    Before the first step, `attach` gives it an exchange.
    """

    def __init__(
        self,
        shard: ExpertShard,
        num_layers: int,
        shape: RowShape,
    ) -> None:
        self._shard = shard
        self._num_layers = num_layers
        # Two: one fills while the other's rows are computed.
        self._inboxes = make_row_inbox(shape), make_row_inbox(shape)
        self._device = shape.device
        self.times = RoleTimes()

    def attach(self, exchange: Exchange) -> None:
        """Go on over this epoch's exchange, while `run` is not running."""
        self._exchange = exchange
        for inbox in self._inboxes:
            inbox.connect(exchange)

    @torch.inference_mode()
    def run(self) -> LoopEnd:
        """Serve steps until told to stop, or to go over to the next epoch.

        Raises:
            PeerLost: a peer is gone.
        """
        while True:
            end = self.serve_step()
            if end is not None:
                return end

    def serve_step(self) -> LoopEnd | None:
        """Wait for a step and run its layers; returns an end when there is none to run.

        Raises:
            PeerLost: a peer is gone.
        """
        headers = self._exchange.await_step()
        if any(header.stop for header in headers):
            return "stop"
        if all_move(headers):
            return "move"
        tasks = self._tasks(headers)
        if tasks:
            self.times.steps += 1
            busy_s = self.times.busy_s
            self._serve(tasks)
            busy_s = self.times.busy_s - busy_s
            ranks = self._exchange.ranks.attention
            asking = [r for r, h in zip(ranks, headers, strict=True) if h.asks_busy and h.num_rows]
            self._exchange.tell_busy(busy_s, asking)
        return None

    def _tasks(self, headers: Sequence[StepHeader]) -> list[_Task]:
        """The step in the order in which its rows come: each layer's micro-batches in turn."""
        micro_batches = agreed_micro_batches(headers)
        ranks = self._exchange.ranks.attention
        sizes = {
            rank: even_sizes(header.num_rows, micro_batches)
            for rank, header in zip(ranks, headers, strict=True)
        }
        rows = [
            {rank: size[index] for rank, size in sizes.items() if size[index]}
            for index in range(micro_batches)
        ]
        return [
            _Task(layer, most_rows)
            for layer in range(self._num_layers)
            for most_rows in rows
            if most_rows
        ]

    def _serve(self, tasks: Sequence[_Task]) -> None:
        # Rows of another micro-batch may come while these are computed. Those of the next layer
        # follow on the sums, and nobody is to wait for what is done for them.
        ahead = len(tasks) > self._num_layers
        inbox, other = self._inboxes
        inbox.expect(tasks[0].most_rows)
        for task, following in zip_longest(tasks, tasks[1:]):
            began_s = perf_counter()
            received = inbox.receive()
            self.times.wait_s += perf_counter() - began_s
            if ahead and following:
                other.expect(following.most_rows)
            sends = self._run_experts(task.layer, inbox, received) if received else []
            if not ahead and following:
                other.expect(following.most_rows)
            self._finish(sends)
            inbox, other = other, inbox

    def _finish(self, sends: Sequence[Message]) -> None:
        began_s = perf_counter()
        for work in sends:
            work.wait()
        self.times.communication_s += perf_counter() - began_s

    def _run_experts(
        self, layer: int, inbox: RowInbox, received: Mapping[int, MessageParts]
    ) -> list[Message]:
        """Compute the rows that came; returns the sends of their sums."""
        arrived_s = perf_counter()
        parts = list(received.values())
        # Rows of all attention ranks run together: each expert's weights are read once.
        x_RD = _joined([one.rows_ND for one in parts])
        ids_RK = _joined([one.ids_NK for one in parts])
        weights_RK = _joined([one.weights_NK for one in parts])
        if weights_RK.device != self._device:
            weights_RK = weights_RK.to(self._device)
        began_s = perf_counter()
        y_RD = self._shard.forward(layer, x_RD, ids_RK, weights_RK)
        ended_s = perf_counter()
        sends = inbox.answer(received, y_RD)
        self.times.rows += x_RD.shape[0]
        self.times.sent_bytes += y_RD.nbytes
        self.times.compute_s += ended_s - began_s
        self.times.communication_s += perf_counter() - ended_s + began_s - arrived_s
        return sends


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
