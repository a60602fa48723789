"""What the processes of the dispatch benchmark have in common, and the loop of an expert rank.

Both sides know the plan: for each number of rows, `rounds` times a run of steps through the
dispatcher and then as many exchanges of the same bytes by bare sends and receives, over the same
transport and over gloo. So nobody has to say what comes next.
Shape suffixes: T rows, D hidden, K experts per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from actors.ranks.process_group import join
from actors.ranks.rendezvous import Rendezvous
from configs.process_settings import CpuTransport
from model.exchange import Exchange, Message, Ranks
from model.expert_server import ExpertServer
from model.experts import ExpertShard
from model.placement import ExpertPlacement, split_evenly
from model.row_message import RowMessage, RowShape
from model.row_split import RowSplit

CPU = torch.device("cpu")
HOST = "127.0.0.1"
ATTENTION_RANK = 0
EXPERTS = 8
JOIN_TIMEOUT_S = 120.0  # a new process imports torch first

Way = Literal["dispatch", "raw", "gloo"]


@dataclass(frozen=True, slots=True)
class DispatchPlan:
    """What is measured: one attention rank, `expert_actors` others, and how often."""

    expert_actors: int
    rows: tuple[int, ...]
    hidden: int
    top_k: int
    layers: int
    iterations: int  # steps of a round
    rounds: int
    dtype: Literal["bfloat16", "float32"]
    seed: int
    cpu_transport: CpuTransport = "sockets"

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= EXPERTS:
            raise ValueError(f"--top-k {self.top_k}: there are {EXPERTS} experts")
        if self.expert_actors > EXPERTS:
            raise ValueError(f"--expert-actors {self.expert_actors}: there are {EXPERTS} experts")

    @property
    def ranks(self) -> tuple[int, ...]:
        """The expert ranks."""
        return tuple(range(1, 1 + self.expert_actors))

    @property
    def placement(self) -> ExpertPlacement:
        """Experts in equal runs, as a server begins."""
        return split_evenly(self.layers, EXPERTS, self.ranks)

    @property
    def shape(self) -> RowShape:
        """Of all messages."""
        return RowShape(max(self.rows), self.hidden, self.top_k, getattr(torch, self.dtype), CPU)

    def turns(self) -> Iterator[tuple[int, int, Way]]:
        """(rows, round, way) in the order they are measured in; round -1 warms up."""
        for rows in self.rows:
            for index in range(-1, self.rounds):
                yield rows, index, "dispatch"
                yield rows, index, "raw"
                yield rows, index, "gloo"

    def routing(self, rows: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids_TK, weights_TK) of a layer: top_k different experts, all equally likely."""
        random = torch.Generator().manual_seed((self.seed * 1009 + rows) * 1009 + layer)
        ids_TK = torch.rand(rows, EXPERTS, generator=random).argsort(1)[:, : self.top_k]
        weights_TK = torch.full((rows, self.top_k), 1.0 / self.top_k)
        return ids_TK.contiguous(), weights_TK

    def rows_for(self, rows: int) -> list[dict[int, int]]:
        """Of each layer: how many rows each expert rank gets."""
        split = RowSplit(self.placement)
        counts = []
        for layer in range(self.layers):
            holders_TK = split.holders(layer, self.routing(rows, layer)[0].numpy())
            counts.append({rank: int((holders_TK == rank).any(1).sum()) for rank in self.ranks})
        return counts

    def meet(self, port: int, rank: int) -> dict[Way, Exchange]:
        """Join the groups whose store listens on `port`."""
        ranks = Ranks.of(1, self.expert_actors, rank)

        def over(epoch: int, transport: CpuTransport) -> Exchange:
            meeting = Rendezvous(HOST, port, epoch, JOIN_TIMEOUT_S, transport)
            return join(meeting, ranks, HOST, CPU)

        own = over(1, self.cpu_transport)
        return {"dispatch": own, "raw": own, "gloo": over(2, "gloo")}


class EchoShard(ExpertShard):
    """Experts that cost nothing: each row's sum is the row."""

    def forward(
        self, layer: int, x_RD: torch.Tensor, ids_RK: torch.Tensor, weights_RK: torch.Tensor
    ) -> torch.Tensor:
        """Return the rows."""
        return x_RD


@torch.inference_mode()
def serve_expert_rank(plan: DispatchPlan, port: int, rank: int) -> None:
    """The life of an expert process: the plan's turns, then its end."""
    torch.set_num_threads(1)
    exchanges = plan.meet(port, rank)
    server = ExpertServer(EchoShard({}), plan.layers, plan.shape)
    server.attach(exchanges["dispatch"])
    message = RowMessage(plan.shape)
    counts = {rows: [count[rank] for count in plan.rows_for(rows)] for rows in plan.rows}
    for rows, _, way in plan.turns():
        for _ in range(plan.iterations):
            if way == "dispatch":
                server.serve_step()
                continue
            for count in counts[rows]:
                _echo(exchanges[way], message, rows, count)


def _echo(exchange: Exchange, message: RowMessage, most: int, count: int) -> None:
    """The messages that the server would receive and send for one layer, and nothing else."""
    exchange.receive_rows(message.whole(most), ATTENTION_RANK).wait()
    if count:
        exchange.send_result(message.rows(count), ATTENTION_RANK).wait()


class RawExchange:
    """The attention side of the same messages: buffers are ready, nobody looks into them."""

    def __init__(self, plan: DispatchPlan, exchange: Exchange) -> None:
        self._exchange = exchange
        shape = plan.shape
        self._messages = {rank: RowMessage(shape) for rank in plan.ranks}
        self._sums = {
            rank: torch.empty(shape.max_rows, shape.hidden, dtype=shape.dtype)
            for rank in plan.ranks
        }

    def layer(self, counts: dict[int, int]) -> None:
        """One round trip with every expert rank."""
        arrivals: list[Message] = []
        sends: list[Message] = []
        for rank, count in counts.items():
            if count:
                arrivals.append(self._exchange.receive_result(self._sums[rank][:count], rank))
            sends.append(self._exchange.send_rows(self._messages[rank].whole(count), rank))
        for message in (*arrivals, *sends):
            message.wait()

    def sent_bytes(self, counts: dict[int, int]) -> int:
        """What a layer sends to all ranks together."""
        return sum(self._messages[rank].whole(count).numel() for rank, count in counts.items())

    def returned_bytes(self, counts: dict[int, int]) -> int:
        """What comes back."""
        return sum(self._sums[rank][:count].nbytes for rank, count in counts.items())
