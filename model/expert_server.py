"""The expert side of the exact dispatcher: rows in, weighted sums out, layer after layer.

Shape suffixes: N rows of one attention rank, R rows of all, D hidden, K experts per token.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from model.exchange import Exchange, LoopEnd, Message, all_move
from model.experts import ExpertShard
from model.row_message import RowMessage


@dataclass(slots=True)
class ServerTimes:
    """Where an expert rank's time went, in seconds since it started."""

    wait_s: float = 0.0
    compute_s: float = 0.0
    steps: int = 0
    rows: int = 0


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
        self._messages: dict[int, RowMessage] = {}
        self._device = device
        self.times = ServerTimes()

    def attach(self, exchange: Exchange) -> None:
        """Go on over this epoch's exchange, while `run` is not running."""
        self._exchange = exchange
        self._messages = {
            rank: self._messages.get(rank) or RowMessage(*self._message_args)
            for rank in exchange.ranks.attention
        }

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
        ranks = self._exchange.ranks.attention
        rows_of = {rank: h.num_rows for rank, h in zip(ranks, headers, strict=True) if h.num_rows}
        if rows_of:
            self.times.steps += 1
            for layer in range(self._num_layers):
                self._serve_layer(layer, rows_of)
        return None

    def _serve_layer(self, layer: int, rows_of: dict[int, int]) -> None:
        started = time.perf_counter()
        counts = self._receive(rows_of)
        arrived = time.perf_counter()
        self.times.wait_s += arrived - started
        senders = [rank for rank, count in zip(rows_of, counts, strict=True) if count]
        counts = [count for count in counts if count]
        if not senders:
            return
        self.times.rows += sum(counts)
        rows = [self._messages[r].rows(n) for r, n in zip(senders, counts, strict=True)]
        ids = [self._messages[r].ids(n) for r, n in zip(senders, counts, strict=True)]
        weights = [self._messages[r].weights(n) for r, n in zip(senders, counts, strict=True)]
        # Rows of all attention ranks run together: each expert's weights are read once.
        y_RD = self._shard.forward(
            layer, _joined(rows), _joined(ids), _joined(weights).to(self._device)
        )
        sends: list[Message] = []
        offset = 0
        for rank, count in zip(senders, counts, strict=True):
            sends.append(self._exchange.send_result(y_RD[offset : offset + count], rank))
            offset += count
        for work in sends:
            work.wait()
        self.times.compute_s += time.perf_counter() - arrived

    def _receive(self, rows_of: dict[int, int]) -> list[int]:
        """Receive one message of each attention rank; returns how many rows each sent.

        `rows_of` says how many each has in the step: no message can hold more.
        """
        exchange, messages = self._exchange, self._messages
        if exchange.one_message:
            works = [
                exchange.receive_rows(messages[rank].whole(most), rank)
                for rank, most in rows_of.items()
            ]
        else:
            works = [
                exchange.receive_routing(messages[rank].routing(most), rank)
                for rank, most in rows_of.items()
            ]
        for work in works:
            work.wait()
        counts = [messages[rank].count for rank in rows_of]
        if not exchange.one_message:
            works = [
                exchange.receive_rows(messages[rank].rows(count), rank)
                for rank, count in zip(rows_of, counts, strict=True)
                if count
            ]
            for work in works:
                work.wait()
        return counts


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
