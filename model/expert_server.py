"""The expert side of the exact dispatcher: rows in, weighted sums out, layer after layer.

Shape suffixes: N rows of one attention rank, R rows of all, D hidden, K experts per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from model.exchange import (
    Exchange,
    LoopEnd,
    Message,
    StepHeader,
    agreed_micro_batches,
    all_move,
)
from model.experts import ExpertShard
from model.micro_batch import even_sizes
from model.role_times import RoleTimes
from model.row_message import MessageParts, RowMessage


@dataclass(frozen=True, slots=True)
class _Task:
    """Rows to serve: of one layer and micro-batch, at most so many of each attention rank."""

    layer: int
    most_rows: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class _Arrival:
    """Receives that are posted for a task, and the buffers they go to."""

    task: _Task
    messages: Mapping[int, RowMessage]
    works: Sequence[Message]


class ExpertServer:
    """Serves one step at a time. Sees (layer, expert, rows), never a request.

    Before the first step, `attach` gives it an exchange.
    """

    def __init__(
        self,
        shard: ExpertShard,
        *,
        num_layers: int,
        max_rows: int,
        hidden: int,
        top_k: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._shard = shard
        self._num_layers = num_layers
        self._message_args = (max_rows, hidden, top_k, dtype, device)
        self._inboxes: tuple[dict[int, RowMessage], dict[int, RowMessage]] = ({}, {})
        self._device = device
        self.times = RoleTimes()

    def attach(self, exchange: Exchange) -> None:
        """Go on over this epoch's exchange, while `run` is not running."""
        self._exchange = exchange
        # Two for each rank: one fills while the other's rows are computed.
        first, second = (
            {
                rank: inbox.get(rank) or RowMessage(*self._message_args)
                for rank in exchange.ranks.attention
            }
            for inbox in self._inboxes
        )
        self._inboxes = first, second

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
        arrival = self._expect(tasks[0], 0)
        for index in range(1, len(tasks) + 1):
            began_s = perf_counter()
            parts = self._receive(arrival)
            self.times.wait_s += perf_counter() - began_s
            layer = arrival.task.layer
            if ahead and index < len(tasks):
                arrival = self._expect(tasks[index], index % 2)
            sends = self._run_experts(layer, parts) if parts else []
            if not ahead and index < len(tasks):
                arrival = self._expect(tasks[index], index % 2)
            self._finish(sends)

    def _finish(self, sends: Sequence[Message]) -> None:
        began_s = perf_counter()
        for work in sends:
            work.wait()
        self.times.communication_s += perf_counter() - began_s

    def _expect(self, task: _Task, inbox: int) -> _Arrival:
        """Post the receives of a task: one message of each attention rank that has rows in it.

        No message can hold more rows than the rank has in the micro-batch.
        """
        exchange, messages = self._exchange, self._inboxes[inbox]
        if exchange.one_message:
            works = [
                exchange.receive_rows(messages[rank].whole(most), rank)
                for rank, most in task.most_rows.items()
            ]
        else:
            works = [
                exchange.receive_routing(messages[rank].routing(most), rank)
                for rank, most in task.most_rows.items()
            ]
        return _Arrival(task, messages, works)

    def _receive(self, arrival: _Arrival) -> dict[int, MessageParts]:
        """Wait for the rows; returns the messages that hold any, by rank."""
        for work in arrival.works:
            work.wait()
        received = {}
        for rank in arrival.task.most_rows:
            message = arrival.messages[rank]
            if count := message.count:
                received[rank] = message.parts(count)
        if not self._exchange.one_message:
            works = [
                self._exchange.receive_rows(parts.rows_ND, rank) for rank, parts in received.items()
            ]
            for work in works:
                work.wait()
        return received

    def _run_experts(self, layer: int, received: Mapping[int, MessageParts]) -> list[Message]:
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
        counts = [len(one.rows_ND) for one in parts]
        results = (y_RD,) if len(parts) == 1 else y_RD.split(counts)
        sends = [
            self._exchange.send_result(y_ND, rank)
            for rank, y_ND in zip(received, results, strict=True)
        ]
        self.times.rows += sum(counts)
        self.times.sent_bytes += y_RD.nbytes
        self.times.compute_s += ended_s - began_s
        self.times.communication_s += perf_counter() - ended_s + began_s - arrived_s
        return sends


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
