"""The expert side of a message of rows: what attention ranks sent, and the sums that go back.

Shape suffixes: N rows of one attention rank, R rows of all, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from model.exchange import Exchange, Message
from model.row_message import MessageParts, RowMessage, RowShape


class RowInbox:
    """Buffers for one message of each attention rank. Before the first, `connect` is called."""

    def __init__(self, shape: RowShape) -> None:
        self._shape = shape
        self.messages: dict[int, RowMessage] = {}
        self._most_rows: Mapping[int, int] = {}
        self._works: Sequence[Message] = ()

    def connect(self, exchange: Exchange) -> None:
        """Go on over this exchange; what was under way over another is forgotten."""
        self._exchange = exchange
        self.messages = {
            rank: self.messages.get(rank) or RowMessage(self._shape)
            for rank in exchange.ranks.attention
        }

    def expect(self, most_rows: Mapping[int, int]) -> None:
        """Await a message of these attention ranks, of at most so many rows each.

        Raises:
            PeerLost: a rank is gone.
        """
        self._most_rows = most_rows
        exchange, messages = self._exchange, self.messages
        if exchange.one_message:
            self._works = [
                exchange.receive_rows(messages[rank].whole(most), rank)
                for rank, most in most_rows.items()
            ]
        else:
            self._works = [
                exchange.receive_routing(messages[rank].routing(most), rank)
                for rank, most in most_rows.items()
            ]

    def receive(self) -> dict[int, MessageParts]:
        """Wait for what is expected; returns the messages that hold any rows, by rank.

        Raises:
            PeerLost: a rank is gone.
        """
        for work in self._works:
            work.wait()
        received = self._received()
        if not self._exchange.one_message:
            works = [
                self._exchange.receive_rows(parts.rows_ND, rank) for rank, parts in received.items()
            ]
            for work in works:
                work.wait()
        return received

    def _received(self) -> dict[int, MessageParts]:
        received = {}
        for rank in self._most_rows:
            message = self.messages[rank]
            if count := message.count:
                received[rank] = message.parts(count)
        return received

    def answer(self, received: Mapping[int, MessageParts], y_RD: torch.Tensor) -> list[Message]:
        """Send every rank the sums of its rows, which lie in y_RD in this order.

        Raises:
            PeerLost: a rank is gone.
        """
        counts = [parts.num_rows for parts in received.values()]
        results = (y_RD,) if len(counts) == 1 else y_RD.split(counts)
        return [
            self._exchange.send_result(y_ND, rank)
            for rank, y_ND in zip(received, results, strict=True)
        ]
