"""What the ranks of a dispatch test run, each in a process of its own, and what they must see.

All of it is a function of (step, attention rank, row): every process knows what every other
sends. Shape suffixes: T rows, D hidden, K experts per token.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch._C._distributed_c10d import TCPStore

from actors.ranks.process_group import join
from actors.ranks.rendezvous import Rendezvous
from configs.process_settings import CpuTransport
from model.dispatch import LocalDispatcher
from model.exact_dispatch import ExactDispatcher
from model.exchange import Exchange, Ranks
from model.expert_server import ExpertServer
from model.experts import Expert, ExpertShard
from model.micro_batch import even_sizes
from model.placement import ExpertPlacement, split_evenly
from model.row_message import RowShape
from model.step_header import agreed_micro_batches

CPU = torch.device("cpu")
HOST = "127.0.0.1"
LAYERS = 2
EXPERTS = 8
MAX_ROWS = 40

Pattern = Literal["spread", "first expert", "last expert", "same for all"]


@dataclass(frozen=True)
class Scenario:
    """One topology, and the steps that run on it: rows of each attention rank, and a pattern."""

    num_attention: int
    num_expert: int
    steps: tuple[tuple[tuple[int, ...], Pattern], ...]
    one_message: bool
    real_experts: bool
    rotated: bool  # another rank for the same expert in each layer
    dtype: str = "float32"
    top_k: int = 2
    micro_batches: int = 1
    cpu_transport: CpuTransport = "sockets"

    @property
    def hidden(self) -> int:
        return 32 if self.real_experts else 8

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def shape(self) -> RowShape:
        return RowShape(MAX_ROWS, self.hidden, self.top_k, self.torch_dtype, CPU)

    @property
    def placement(self) -> ExpertPlacement:
        ranks = range(self.num_attention, self.num_attention + self.num_expert)
        if not self.rotated:
            return split_evenly(LAYERS, EXPERTS, ranks)
        return ExpertPlacement(
            1,
            tuple(
                tuple((ranks[(e + layer) % len(ranks)],) for e in range(EXPERTS))
                for layer in range(LAYERS)
            ),
        )

    def rows(self, step: int, rank: int) -> torch.Tensor:
        """x_TD: random for real experts, else integers with a first column of ones."""
        count = self.steps[step][0][rank]
        if self.real_experts:
            random = torch.Generator().manual_seed(1000 * step + rank)
            return torch.randn(count, self.hidden, generator=random).to(self.torch_dtype)
        ids = 1000 * step + 100 * rank + torch.arange(count)
        x_TD = (ids[:, None] * 37 + torch.arange(self.hidden) * 11) % 251
        x_TD[:, 0] = 1
        return x_TD.to(self.torch_dtype)

    def routing(self, step: int, rank: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids_TK, weights_TK): different experts in a row; weights are quarters."""
        counts, pattern = self.steps[step]
        row_T = torch.arange(counts[rank])
        if pattern == "spread":
            first_T = row_T * 3 + layer + rank
            stride_T = 1 + row_T % 2 * 2  # odd: no expert twice in a row
        elif pattern == "first expert":
            first_T, stride_T = torch.zeros_like(row_T), torch.ones_like(row_T)
        elif pattern == "last expert":
            first_T, stride_T = torch.full_like(row_T, EXPERTS - 1), -torch.ones_like(row_T)
        else:
            first_T, stride_T = torch.full_like(row_T, 5), torch.full_like(row_T, 5)
        ids_TK = (first_T[:, None] + stride_T[:, None] * torch.arange(self.top_k)) % EXPERTS
        weights_TK = (1.0 + (row_T[:, None] + torch.arange(self.top_k)) % 3) * 0.25
        return ids_TK, weights_TK.expand(-1, self.top_k).contiguous()

    def expected(self, step: int, rank: int, layer: int) -> torch.Tensor:
        """y_TD of the scaling experts."""
        ids_TK, weights_TK = self.routing(step, rank, layer)
        factors_TK = (1.0 + ids_TK + EXPERTS * layer) * weights_TK
        return self.rows(step, rank) * factors_TK.sum(1, keepdim=True).to(self.torch_dtype)

    def shard(self, held: list[tuple[int, int]]) -> ExpertShard:
        make = self._real_expert if self.real_experts else self._scaling_expert
        return ExpertShard({(layer, expert): make(layer, expert) for layer, expert in held})

    def _real_expert(self, layer: int, expert: int) -> Expert:
        random = torch.Generator().manual_seed(100 * layer + expert)

        def weight(n: int, m: int) -> torch.Tensor:
            values = torch.randn(n, m, generator=random) * float(m**-0.5)
            return values.to(self.torch_dtype)

        return Expert(weight(48, 32), weight(48, 32), weight(32, 48))

    def _scaling_expert(self, layer: int, expert: int) -> Expert:
        # silu(32 * 1) is 32 to fp32's last bit, and 32 is a power of two: all sums are exact.
        gate = torch.zeros(8, 8)
        gate[:, 0] = 32.0
        factor = 1.0 + expert + EXPERTS * layer
        return Expert(gate, torch.eye(8) * factor, torch.eye(8) / 32.0)

    def rows_served(self, expert_rank: int) -> int:
        """Rows that an expert rank gets in all, over layers, steps and attention ranks."""
        total = 0
        for step, (counts, _) in enumerate(self.steps):
            for rank in range(len(counts)):
                for layer in range(LAYERS):
                    holders = self.placement.ranks[layer]
                    for row in self.routing(step, rank, layer)[0].tolist():
                        total += any(expert_rank in holders[expert] for expert in row)
        return total


def meet(scenario: Scenario, port: int, epoch: int, rank: int, timeout_s: float = 30.0) -> Exchange:
    return join(
        Rendezvous(HOST, port, epoch, timeout_s, scenario.cpu_transport),
        Ranks.of(scenario.num_attention, scenario.num_expert, rank),
        HOST,
        CPU,
        one_message=scenario.one_message,
    )


def dispatcher_of(scenario: Scenario, exchange: Exchange) -> ExactDispatcher:
    dispatcher = ExactDispatcher(scenario.shape)
    dispatcher.attach(exchange, scenario.placement)
    return dispatcher


def server_of(scenario: Scenario, exchange: Exchange) -> ExpertServer:
    server = ExpertServer(
        scenario.shard(scenario.placement.held_by(exchange.ranks.own)), LAYERS, scenario.shape
    )
    server.attach(exchange)
    return server


def attention_rank(
    scenarios: tuple[Scenario, ...], port: int, epoch: int, rank: int
) -> list[tuple[int, float]]:
    """Run all; returns for each how many rows were checked, and the worst error found."""
    exchange = meet(scenarios[0], port, epoch, rank)
    return [_run_steps(scenario, exchange) for scenario in scenarios]


@torch.inference_mode()
def _run_steps(scenario: Scenario, exchange: Exchange) -> tuple[int, float]:
    rank = exchange.ranks.own
    dispatcher = dispatcher_of(scenario, exchange)
    local = LocalDispatcher(
        scenario.shard([(layer, e) for layer in range(LAYERS) for e in range(EXPERTS)])
    )
    checked, worst = 0, 0.0
    for step, (counts, _) in enumerate(scenario.steps):
        # The ranks with fewer rows would have it otherwise.
        wanted = scenario.micro_batches if counts[rank] == max(counts) else 1
        headers = exchange.open_step(counts[rank], 7, micro_batches=wanted)
        assert agreed_micro_batches(headers) == scenario.micro_batches
        assert [h.num_rows for h in headers] == list(counts), headers
        assert all(h.placement_version == 7 and not h.stop for h in headers), headers
        if not counts[rank]:
            continue
        x = scenario.rows(step, rank)
        before = x.clone()
        for layer in range(LAYERS):
            for flight in dispatcher._flights:
                flight.sums_SD[:-1].fill_(torch.nan)
            routing = scenario.routing(step, rank, layer)
            y = _through_experts(dispatcher, layer, x, routing, scenario.micro_batches)
            if scenario.real_experts:
                want = local.combine(local.dispatch(layer, x, *routing))
            else:
                want = scenario.expected(step, rank, layer)
            assert (y.shape, y.dtype) == (want.shape, want.dtype)
            error = float((y - want).abs().max())
            assert error == error, "a row was never filled in"
            worst = max(worst, error)
            checked += len(x)
        assert torch.equal(x, before)
    stopping = rank == scenario.num_attention - 1
    headers = exchange.open_step(3, 7, stop=stopping)
    assert [h.stop for h in headers] == [False] * (scenario.num_attention - 1) + [True]
    return checked, worst


def _through_experts(
    dispatcher: ExactDispatcher,
    layer: int,
    x_TD: torch.Tensor,
    routing: tuple[torch.Tensor, torch.Tensor],
    micro_batches: int,
) -> torch.Tensor:
    """All micro-batches under way at once; their sums."""
    sizes = [size for size in even_sizes(len(x_TD), micro_batches) if size]
    parts = zip(x_TD.split(sizes), routing[0].split(sizes), routing[1].split(sizes), strict=True)
    under_way = [dispatcher.dispatch(layer, *part) for part in parts]
    return torch.cat([dispatcher.combine(one) for one in under_way])


def expert_rank(
    scenarios: tuple[Scenario, ...], port: int, epoch: int, rank: int
) -> list[tuple[int, int]]:
    """Serve each until told to stop; returns (steps with rows, rows over all layers) of each."""
    exchange = meet(scenarios[0], port, epoch, rank)
    served = []
    for scenario in scenarios:
        server = server_of(scenario, exchange)
        for inbox in server._inboxes:
            for message in inbox.messages.values():
                message._host.fill_(0xFF)  # NaN rows and weights, id -1, count -1
        server.run()
        served.append((server.times.steps, server.times.rows))
    return served


@torch.inference_mode()
def step_for_ever(scenario: Scenario, port: int, epoch: int, rank: int) -> None:
    """An attention rank that repeats its first step until a peer is lost."""
    exchange = meet(scenario, port, epoch, rank, timeout_s=120.0)
    dispatcher = dispatcher_of(scenario, exchange)
    x = scenario.rows(0, rank)
    for step in itertools.count():
        if step == 3:
            TCPStore(HOST, port, is_master=False).set(under_way(epoch, rank), "")
        exchange.open_step(len(x), 1)
        for layer in range(LAYERS if len(x) else 0):
            routing = scenario.routing(0, rank, layer)
            y = dispatcher.combine(dispatcher.dispatch(layer, x, *routing))
            assert torch.equal(y, scenario.expected(0, rank, layer))


def serve_for_ever(scenario: Scenario, port: int, epoch: int, rank: int) -> None:
    """An expert rank in a group whose timeout is far longer than a test."""
    server_of(scenario, meet(scenario, port, epoch, rank, timeout_s=120.0)).run()


def under_way(epoch: int, rank: int) -> str:
    """The key that an attention rank sets in the store after a few steps."""
    return f"under way/{epoch}/{rank}"
