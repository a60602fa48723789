"""Rows and sums over sockets, by the compiled library and without it: the same bytes either way.

Shape suffixes: T rows, D hidden, K experts per token.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from actors.ranks.socket_group import SocketGroup
from model import exact_dispatch, expert_server
from model.cpu_kernels.row_flight import KernelRowFlight
from model.cpu_kernels.row_inbox import KernelRowInbox
from model.exact_dispatch import ExactDispatcher
from model.exchange import RESULT_TAG, ROWS_TAG, Exchange, PeerLost, Ranks
from model.expert_server import ExpertServer
from model.experts import ExpertShard
from model.micro_batch import even_sizes
from model.placement import split_evenly
from model.row_flight import RowFlight
from model.row_inbox import RowInbox
from model.row_message import RowShape
from model.row_split import RowSplit
from tests.compiled_kernels import compiled_library

CPU = torch.device("cpu")
TIMEOUT_S = 20.0
LAYERS, EXPERTS, TOP_K = 2, 8, 2
HIDDEN = 256
MANY = 900  # rows of far more bytes than a socket takes, in thirds too
SEND_BUFFER_BYTES = 16 * 1024
Ends = dict[int, socket.socket]


def connected(pairs: Sequence[tuple[int, int]], size: int) -> list[Ends]:
    ends: list[Ends] = [{} for _ in range(size)]
    for a, b in pairs:
        ends[a][b], ends[b][a] = socket.socketpair()
        for end in (ends[a][b], ends[b][a]):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    return ends


def exchanges(num_attention: int, num_expert: int, timeout_s: float = TIMEOUT_S) -> list[Exchange]:
    """Of all ranks, attention first."""
    size = num_attention + num_expert
    everybody = list(itertools.combinations(range(size), 2))
    apart = [(a, b) for a, b in everybody if a < num_attention <= b]
    control, data = connected(everybody, size), connected(apart, size)
    return [
        Exchange(
            Ranks.of(num_attention, num_expert, rank),
            SocketGroup(control[rank], timeout_s),
            SocketGroup(data[rank], timeout_s),
            one_message=True,
        )
        for rank in range(size)
    ]


class Scaling(ExpertShard):
    """A row's sum on a rank is the row times its layer's number."""

    def forward(
        self, layer: int, x_RD: torch.Tensor, ids_RK: torch.Tensor, weights_RK: torch.Tensor
    ) -> torch.Tensor:
        assert (ids_RK >= 0).any(1).all()
        return x_RD * (layer + 1)


def routing(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids_TK, weights_TK), and how many of two ranks each row goes to [T, 1]."""
    row_T = torch.arange(rows)
    ids_TK = torch.stack([row_T % EXPERTS, (row_T % EXPERTS + 1 + row_T % 3) % EXPERTS], 1)
    goes_T1 = 1.0 + (ids_TK[:, :1] // 4 != ids_TK[:, 1:] // 4)
    return ids_TK, torch.ones(rows, TOP_K), goes_T1


@pytest.fixture(params=["attention compiled", "experts compiled", "both compiled", "neither"])
def sides(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two sides the compiled library serves."""
    library = compiled_library()
    attention, expert = (
        request.param in (f"{name} compiled", "both compiled") for name in ("attention", "experts")
    )
    monkeypatch.setattr(
        exact_dispatch,
        "make_row_flight",
        lambda *args: KernelRowFlight(library, *args) if attention else RowFlight(*args),
    )
    monkeypatch.setattr(
        expert_server,
        "make_row_inbox",
        lambda shape: KernelRowInbox(library, shape) if expert else RowInbox(shape),
    )
    return str(request.param)


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the ranks to which the kernel did not take a message whole."""
    seen: list[int] = []
    plain = SocketGroup.send_rest

    def counted(self: SocketGroup, tensor: torch.Tensor, index: int, tag: int, sent: int) -> object:
        seen.append(index)
        return plain(self, tensor, index, tag, sent)

    monkeypatch.setattr(SocketGroup, "send_rest", counted)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("most", [5, MANY])
def test_sums_come_back_whatever_the_kernel_takes_at_once(
    sides: str, rests: list[int], most: int, micro_batches: int, dtype: torch.dtype
) -> None:
    shape = RowShape(MANY, HIDDEN, TOP_K, dtype, CPU)
    steps = [(most, 1), (0, most), (most, most), (3, most)]
    placement = split_evenly(LAYERS, EXPERTS, (2, 3))
    made = exchanges(2, 2)

    @torch.inference_mode()
    def attention_side(rank: int) -> None:
        exchange, dispatcher = made[rank], ExactDispatcher(shape)
        dispatcher.attach(exchange, placement)
        for rows in (step[rank] for step in steps):
            exchange.open_step(rows, 1, micro_batches=micro_batches)
            x_TD = (torch.arange(rows * HIDDEN).view(rows, HIDDEN) % 59 + rank).to(dtype)
            ids_TK, weights_TK, goes_T1 = routing(rows)
            sizes = [size for size in even_sizes(rows, micro_batches) if size]
            for layer in range(LAYERS if rows else 0):
                for flight in dispatcher._flights:
                    flight.sums_SD[:-1] = torch.nan
                parts = zip(x_TD.split(sizes), ids_TK.split(sizes), weights_TK.split(sizes))
                under_way = [dispatcher.dispatch(layer, *part) for part in parts]
                y_TD = torch.cat([dispatcher.combine(one) for one in under_way])
                assert torch.equal(y_TD, (x_TD * (layer + 1) * goes_T1).to(dtype))
        exchange.open_step(0, 1, stop=True)

    def expert_side(rank: int) -> int:
        server = ExpertServer(Scaling({}), LAYERS, shape)
        server.attach(made[rank])
        assert server.run() == "stop"
        return server.times.steps

    with ThreadPoolExecutor(4) as pool:
        served = [pool.submit(expert_side, rank) for rank in (2, 3)]
        for attention in [pool.submit(attention_side, rank) for rank in (0, 1)]:
            attention.result(TIMEOUT_S)
        assert [one.result(TIMEOUT_S) for one in served] == [len(steps)] * 2
    if most == MANY:  # either way, and from either side
        assert set(rests) == {0, 1, 2, 3}
    else:
        assert not rests


def lone_flight(timeout_s: float = TIMEOUT_S) -> tuple[KernelRowFlight, socket.socket, Exchange]:
    """An attention rank's, and the end of its one expert rank."""
    ours, theirs = socket.socketpair()
    group = SocketGroup({1: ours}, timeout_s)
    flight = KernelRowFlight(
        compiled_library(), (1,), RowShape(MANY, HIDDEN, TOP_K, torch.bfloat16, CPU)
    )
    exchange = Exchange(Ranks.of(1, 1, 0), group, group, one_message=True)
    flight.connect(exchange)
    return flight, theirs, exchange


def launch(flight: RowFlight, rows: int) -> None:
    ids_TK, weights_TK, _ = routing(rows)
    x_TD = torch.ones(rows, HIDDEN, dtype=torch.bfloat16)
    split = RowSplit(split_evenly(1, EXPERTS, (1,)))
    flight.launch(0, x_TD, ids_TK, weights_TK, split)


@pytest.mark.parametrize("rows", [2, MANY])
def test_rows_for_a_rank_that_is_gone(rows: int) -> None:
    flight, theirs, _ = lone_flight()
    theirs.close()
    with pytest.raises(PeerLost, match="rank 1 of the group is gone"):
        launch(flight, rows)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "is gone"),
        (struct.pack("<qq", 2 * HIDDEN * 2, RESULT_TAG) + bytes(99), "is gone"),
        (struct.pack("<qq", 1 * HIDDEN * 2, RESULT_TAG) + bytes(HIDDEN * 2), "another message"),
        (struct.pack("<qq", 3 * HIDDEN * 2, RESULT_TAG), "another message"),
        (struct.pack("<qq", -1, RESULT_TAG), "another message"),
        (struct.pack("<qq", 2 * HIDDEN * 2, ROWS_TAG), "another message"),
    ],
)
def test_an_answer_that_is_not_the_sums(answer: bytes, why: str) -> None:
    flight, theirs, _ = lone_flight()
    launch(flight, 2)
    theirs.sendall(answer)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(PeerLost, match=f"rank 1 of the group.*{why}"):
        flight.land()


def test_sums_that_do_not_come_in_time() -> None:
    flight, _theirs, _ = lone_flight(0.2)
    launch(flight, 2)
    with pytest.raises(PeerLost, match="rank 1 of the group said nothing in time"):
        flight.land()


def test_an_abort_ends_a_wait_for_sums() -> None:
    flight, _theirs, exchange = lone_flight()
    launch(flight, 2)
    with ThreadPoolExecutor(1) as pool:
        landing = pool.submit(flight.land)
        exchange.abort()
        with pytest.raises(PeerLost, match="rank 1 of the group is gone"):
            landing.result(TIMEOUT_S)


def lone_inbox(timeout_s: float = TIMEOUT_S) -> tuple[KernelRowInbox, socket.socket]:
    """An expert rank's, and the end of its one attention rank."""
    ours, theirs = socket.socketpair()
    group = SocketGroup({0: ours}, timeout_s)
    inbox = KernelRowInbox(compiled_library(), RowShape(MANY, HIDDEN, TOP_K, torch.bfloat16, CPU))
    inbox.connect(Exchange(Ranks.of(1, 1, 1), group, group, one_message=True))
    inbox.expect({0: 2})
    return inbox, theirs


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"", "is gone"),
        (struct.pack("<qq", 16, ROWS_TAG) + bytes(15), "is gone"),
        (struct.pack("<qq", 16, RESULT_TAG) + bytes(16), "another message"),
        (struct.pack("<qq", 48 + 2 * HIDDEN * 2 + 1, ROWS_TAG), "another message"),
    ],
)
def test_a_message_that_is_not_rows(message: bytes, why: str) -> None:
    inbox, theirs = lone_inbox()
    theirs.sendall(message)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(PeerLost, match=f"rank 0 of the group.*{why}"):
        inbox.receive()


def test_rows_that_do_not_come_in_time() -> None:
    inbox, _theirs = lone_inbox(0.2)
    with pytest.raises(PeerLost, match="rank 0 of the group said nothing in time"):
        inbox.receive()


def test_sums_for_a_rank_that_is_gone() -> None:
    inbox, theirs = lone_inbox()
    rows = torch.ones(2, HIDDEN, dtype=torch.bfloat16)
    parts = inbox.messages[0].parts(2)
    theirs.close()
    with pytest.raises(PeerLost, match="rank 0 of the group is gone"):
        inbox.answer({0: parts}, rows)
