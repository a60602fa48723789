"""The exact dispatcher between real processes, by sockets and gloo: sums, oracles, deaths."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeAlias

import pytest
import torch
from torch._C._distributed_c10d import TCPStore

from actors.ranks.process_group import join
from actors.ranks.rendezvous import Rendezvous, host_store
from configs.process_settings import CpuTransport
from model.exchange import Exchange, Ranks
from model.placement import split_evenly
from model.row_message import RowMessage, RowShape
from model.step_header import StepHeader, agreed_micro_batches
from tests.model.dispatch_ranks import (
    CPU,
    HOST,
    LAYERS,
    MAX_ROWS,
    Pattern,
    Scenario,
    attention_rank,
    expert_rank,
    serve_for_ever,
    step_for_ever,
    under_way,
)
from tests.rank_processes import Job, RankProcesses, rank_processes

TOPOLOGIES = [(1, 1), (1, 2), (1, 3), (1, 8), (2, 2), (2, 3)]
EPOCHS = itertools.count(1)
Steps: TypeAlias = "tuple[tuple[tuple[int, ...], Pattern], ...]"


@pytest.fixture(scope="module")
def processes() -> Iterator[RankProcesses]:
    with rank_processes(9) as processes:
        yield processes


@pytest.fixture(scope="module")
def store() -> TCPStore:
    return host_store(HOST, 30.0)


@pytest.fixture(scope="module")
def port(store: TCPStore) -> int:
    return store.port


def steps_for(num_attention: int) -> Steps:
    """Uneven, empty, one-row and full steps; every pattern; the ranks' counts change places."""
    plain: list[tuple[tuple[int, int], Pattern]] = [
        ((5, 0), "spread"),
        ((0, 0), "spread"),
        ((1, 17), "spread"),
        ((3, MAX_ROWS), "first expert"),
        ((0, 2), "last expert"),
        ((9, 9), "same for all"),
        ((MAX_ROWS, MAX_ROWS), "spread"),
        ((1, 1), "last expert"),
    ]
    return tuple((counts[:num_attention], pattern) for counts, pattern in plain)


def run(processes: RankProcesses, port: int, scenarios: tuple[Scenario, ...]) -> list[float]:
    """Run them on the first processes, in one group, and check all counts; the worst errors."""
    num_attention = scenarios[0].num_attention
    epoch = next(EPOCHS)
    jobs: list[Job] = []
    for rank in range(num_attention + scenarios[0].num_expert):
        function = attention_rank if rank < num_attention else expert_rank
        jobs.append((function, (scenarios, port, epoch, rank)))
    answers = processes.run(jobs)
    errors = []
    for index, scenario in enumerate(scenarios):
        busy = sum(any(counts) for counts, _ in scenario.steps)
        for rank, answer in enumerate(answers):
            if rank < num_attention:
                rows = sum(counts[rank] for counts, _ in scenario.steps)
                assert answer[index][0] == LAYERS * rows > 0
            else:
                assert answer[index] == (busy, scenario.rows_served(rank))
        errors.append(max(answer[index][1] for answer in answers[:num_attention]))
    return errors


@pytest.mark.parametrize(
    ("transport", "one_message"), [("sockets", True), ("gloo", True), ("gloo", False)]
)
@pytest.mark.parametrize(("num_attention", "num_expert"), TOPOLOGIES)
def test_sums_come_back(
    processes: RankProcesses,
    port: int,
    num_attention: int,
    num_expert: int,
    transport: CpuTransport,
    one_message: bool,
) -> None:
    linear = Scenario(
        num_attention,
        num_expert,
        steps_for(num_attention),
        one_message,
        real_experts=False,
        rotated=False,
        cpu_transport=transport,
    )
    exact = (linear, replace(linear, rotated=True), replace(linear, top_k=1))
    real = replace(linear, real_experts=True, rotated=True, top_k=3)
    in_bf16 = replace(real, dtype="bfloat16")
    cut = [replace(linear, rotated=True, micro_batches=count) for count in (2, 3)]
    errors = run(processes, port, (*exact, *cut, real, in_bf16))
    assert errors[:5] == [0.0] * 5
    assert errors[5] < 2e-6
    # Sums rounded per rank, then added: a few units in bf16's last place of values around 1.
    assert errors[6] < 0.05


def test_the_rank_with_most_rows_decides() -> None:
    def agreed(*brought: tuple[int, int]) -> int:
        headers = [StepHeader(1, rows, 0, 1, 0, wanted, False, False) for rows, wanted in brought]
        return agreed_micro_batches(headers)

    assert agreed((5, 1), (9, 2), (0, 3)) == 2
    assert agreed((9, 3), (9, 1)) == 3
    assert agreed((0, 1)) == 1


def test_experts_answer_only_who_asked(port: int) -> None:
    attention, expert = two_ranks(port, 20.0)
    with ThreadPoolExecutor(1) as thread:
        for asks in (False, True):
            heard = thread.submit(expert.await_step)
            attention.open_step(3, 1, asks_busy=asks)
            assert [header.asks_busy for header in heard.result()] == [asks]
        told = thread.submit(expert.tell_busy, 0.25, [0])
        assert attention.ask_busy() == [0.25]
        told.result()


@pytest.mark.parametrize("transport", ["sockets", "gloo"])
@pytest.mark.parametrize(
    ("victim", "rows"), [(0, (40, 3)), (0, (0, 0)), (1, (0, 2)), (2, (40, 3)), (3, (0, 0))]
)
def test_a_killed_rank_is_an_error_on_every_other_one_soon(
    store: TCPStore, victim: int, rows: tuple[int, int], transport: CpuTransport
) -> None:
    steps: Steps = ((rows, "spread"),)
    scenario = Scenario(2, 2, steps, True, False, False, cpu_transport=transport)
    epoch = next(EPOCHS)
    with rank_processes(4) as ranks:
        for rank in range(4):
            function = step_for_ever if rank < 2 else serve_for_ever
            ranks.start(rank, function, scenario, store.port, epoch, rank)
        store.wait([under_way(epoch, 0), under_way(epoch, 1)])
        ranks.kill(victim)
        killed = time.monotonic()
        for rank in range(4):
            if rank != victim:
                fine, error = ranks.answer(rank, timeout_s=20.0)
                assert not fine and error.startswith("PeerLost: "), error
        assert time.monotonic() - killed < 10.0


def test_a_rank_that_does_not_come_is_an_error_after_the_timeout(port: int) -> None:
    with pytest.raises(RuntimeError):
        join(Rendezvous(HOST, port, next(EPOCHS), 0.3), Ranks.of(1, 1, 0), HOST, CPU)


def two_ranks(port: int, timeout_s: float) -> tuple[Exchange, Exchange]:
    """Both sides of a (1, 1) in this process: attention, expert."""
    meeting = Rendezvous(HOST, port, next(EPOCHS), timeout_s)
    with ThreadPoolExecutor(2) as threads:
        made = [threads.submit(join, meeting, Ranks.of(1, 1, r), HOST, CPU) for r in range(2)]
        return made[0].result(), made[1].result()


def test_a_silent_rank_is_an_error_after_the_timeout(port: int) -> None:
    _attention, expert = two_ranks(port, 1.0)
    started = time.monotonic()
    with pytest.raises(RuntimeError):
        expert.await_step()
    assert 0.5 < time.monotonic() - started < 5.0


def test_ranks_out_of_step_are_an_error(port: int) -> None:
    attention, expert = two_ranks(port, 20.0)
    attention._step = 4
    with ThreadPoolExecutor(1) as thread:
        sent = thread.submit(attention.open_step, 0, 1)
        with pytest.raises(RuntimeError, match="rank 0 is at step 5, not 1"):
            expert.await_step()
        assert [header.step for header in sent.result()] == [5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("hidden", "top_k"), [(1, 1), (7, 3), (64, 2), (33, 8)])
def test_the_parts_of_a_message_do_not_overlap(hidden: int, top_k: int, dtype: torch.dtype) -> None:
    message = RowMessage(RowShape(9, hidden, top_k, dtype, CPU))
    for count in (0, 1, 8, 9):
        message.set_count(count)
        ids = torch.arange(count * top_k, dtype=torch.int32).view(count, top_k) - 1
        weights = torch.rand(count, top_k)
        rows = torch.randn(count, hidden).to(dtype)
        message.rows(count).copy_(rows)
        message.weights(count).copy_(weights)
        message.ids(count).copy_(ids)
        # What travels is enough to tell everything, and no longer than it has to be.
        whole = message.whole(count)
        used = 4 + count * (top_k * 8 + hidden * dtype.itemsize)
        assert used <= len(whole) < used + 32
        assert len(message.routing(count)) == len(whole) - count * hidden * dtype.itemsize
        other = RowMessage(RowShape(9, hidden, top_k, dtype, CPU))
        other.whole(9).fill_(0xFF)
        other.whole(9)[: len(whole)] = whole
        assert other.count == count
        assert torch.equal(other.ids(count), ids)
        assert torch.equal(other.weights(count), weights)
        assert torch.equal(other.rows(count), rows)


@pytest.mark.parametrize(
    ("experts", "ranks", "want"),
    [
        (8, [1], [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (8, [1, 2, 3], [[0, 1, 2], [3, 4, 5], [6, 7]]),
        (8, [2, 3, 4, 5, 6], [[0, 1], [2, 3], [4, 5], [6], [7]]),
        (3, [5, 6, 7], [[0], [1], [2]]),
    ],
)
def test_experts_are_split_in_runs(experts: int, ranks: list[int], want: list[list[int]]) -> None:
    placement = split_evenly(2, experts, ranks)
    assert placement.version == 1
    for rank, held in zip(ranks, want, strict=True):
        assert placement.held_by(rank) == [(layer, e) for layer in range(2) for e in held]
    assert placement.held_by(99) == []


@pytest.mark.parametrize("ranks", [[], [1, 2, 3, 4]])
def test_a_split_without_an_expert_for_each_rank_is_refused(ranks: list[int]) -> None:
    with pytest.raises(ValueError, match=f"3 experts cannot be split over {len(ranks)} expert"):
        split_evenly(2, 3, ranks)
