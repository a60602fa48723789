"""The expert side of the exact dispatcher: rows in, weighted sums out, layer after layer.

Shape suffixes: N rows of one attention rank, R rows of all, D hidden, K experts per token.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from model.exchange import Exchange, Message
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
    """Serves one step at a time. Sees (layer, expert, rows), never a request."""

    def __init__(
        self,
        exchange: Exchange,
        shard: ExpertShard,
        *,
        num_layers: int,
        max_rows: int,
        hidden: int,
        top_k: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._exchange = exchange
        self._shard = shard
        self._num_layers = num_layers
        self._messages = [
            RowMessage(max_rows, hidden, top_k, dtype, device) for _ in exchange.ranks.attention
        ]
        self._device = device
        self.times = ServerTimes()

    def attach(self, exchange: Exchange) -> None:
        """Go on over another epoch's exchange, while `run` is not running; same ranks."""
        self._exchange = exchange

    @torch.inference_mode()
    def run(self) -> None:
        """Serve steps until told to stop.

        Raises:
            PeerLost: a peer is gone.
        """
        while self.serve_step():
            pass

    def serve_step(self) -> bool:
        """Wait for a step and run its layers; returns False when it was told to stop.

        Raises:
            PeerLost: a peer is gone.
        """
        headers = self._exchange.await_step()
        if any(header.stop for header in headers):
            return False
        bringing = [rank for rank, header in enumerate(headers) if header.num_rows]
        if bringing:
            self.times.steps += 1
            max_rows = [header.num_rows for header in headers]
            for layer in range(self._num_layers):
                self._serve_layer(layer, bringing, max_rows)
        return True

    def _serve_layer(self, layer: int, bringing: list[int], max_rows: list[int]) -> None:
        started = time.perf_counter()
        counts = self._receive(bringing, max_rows)
        arrived = time.perf_counter()
        self.times.wait_s += arrived - started
        senders = [rank for rank, count in zip(bringing, counts, strict=True) if count]
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

    def _receive(self, bringing: list[int], max_rows: list[int]) -> list[int]:
        """Receive one message of each attention rank; returns how many rows each sent."""
        exchange = self._exchange
        if exchange.one_message:
            works = [
                exchange.receive_rows(self._messages[rank].whole(max_rows[rank]), rank)
                for rank in bringing
            ]
        else:
            works = [
                exchange.receive_routing(self._messages[rank].routing(max_rows[rank]), rank)
                for rank in bringing
            ]
        for work in works:
            work.wait()
        counts = [self._messages[rank].count for rank in bringing]
        if not exchange.one_message:
            works = [
                exchange.receive_rows(self._messages[rank].rows(count), rank)
                for rank, count in zip(bringing, counts, strict=True)
                if count
            ]
            for work in works:
                work.wait()
        return counts


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
