"""A rank's loop over epochs: a lost peer ends one for all, a move ends one without a loss."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from actors.ranks.epochs import Epoch, Epochs
from actors.ranks.process_group import join
from actors.ranks.rendezvous import Rendezvous, host_store
from model.exchange import Exchange, LoopEnd, PeerLost, Ranks
from model.placement import ExpertPlacement
from model.step_header import all_move

HOST = "127.0.0.1"
CPU = torch.device("cpu")
TIMEOUT_S = 30.0
NOWHERE = ExpertPlacement(1, ())


def meet(ranks: list[Ranks], epoch: int = 1) -> list[Exchange]:
    """One exchange per rank of a new group."""
    store = host_store(HOST, TIMEOUT_S)
    meeting = Rendezvous(HOST, store.port, epoch, TIMEOUT_S)
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(lambda r: join(meeting, r, HOST, CPU), ranks))


def one_and(experts: int, epoch: int = 1) -> list[Exchange]:
    """One attention rank, and so many expert ranks."""
    return meet([Ranks.of(1, experts, own) for own in range(1 + experts)], epoch)


class Loop:
    """Epochs in a thread; what it does in one is up to the test."""

    def __init__(self, body: Callable[[Epoch], LoopEnd]) -> None:
        self.over: queue.Queue[tuple[int, bool]] = queue.Queue()
        self.epochs = Epochs(lambda number, moved: self.over.put((number, moved)))
        self.thread = threading.Thread(target=self.epochs.run, args=(body,), daemon=True)

    def offer(self, number: int, exchange: Exchange) -> None:
        self.epochs.offer(Epoch(number, exchange, NOWHERE))

    def left(self) -> tuple[int, bool]:
        return self.over.get(timeout=TIMEOUT_S)

    def ended(self) -> bool:
        self.thread.join(TIMEOUT_S)
        return not self.thread.is_alive()


@pytest.fixture
def started() -> Iterator[Callable[[Callable[[Epoch], LoopEnd]], Loop]]:
    loops: list[Loop] = []

    def start(body: Callable[[Epoch], LoopEnd]) -> Loop:
        loops.append(Loop(body))
        loops[-1].thread.start()
        return loops[-1]

    yield start
    for loop in loops:
        loop.epochs.stop()
        loop.epochs.interrupt(0)
        assert loop.ended()


def serve(steps: list[int]) -> Callable[[Epoch], LoopEnd]:
    """What an expert rank does, without the rows: notes the epoch of every step."""

    def body(epoch: Epoch) -> LoopEnd:
        while True:
            headers = epoch.exchange.await_step()
            if headers[0].stop:
                return "stop"
            if all_move(headers):
                return "move"
            steps.append(epoch.number)

    return body


def test_abort_fails_a_receive_that_is_blocked_here_and_there() -> None:
    attention, first, second = one_and(2)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(expert.await_step) for expert in (first, second)]
        first.abort()
        with pytest.raises(PeerLost):
            waiting[0].result(TIMEOUT_S)
        assert not waiting[1].done(), "the second expert has lost nobody it waits for"
        with pytest.raises(PeerLost):
            attention.open_step(1, 1)
        attention.abort()
        with pytest.raises(PeerLost):
            waiting[1].result(TIMEOUT_S)


def test_a_loop_leaves_a_lost_epoch_and_begins_the_next(
    started: Callable[[Callable[[Epoch], LoopEnd]], Loop],
) -> None:
    steps: list[int] = []
    loop = started(serve(steps))
    attention, expert = one_and(1)
    loop.offer(1, expert)
    attention.open_step(1, 1)
    attention.abort()
    assert loop.left() == (1, False)
    attention, expert = one_and(1, epoch=2)
    loop.offer(2, expert)
    attention.open_step(1, 1)
    attention.open_step(0, 1, stop=True)
    assert loop.ended()
    assert steps == [1, 2]


def test_all_ranks_move_at_one_step_to_an_epoch_with_other_ranks(
    started: Callable[[Callable[[Epoch], LoopEnd]], Loop],
) -> None:
    first: list[int] = []
    second: list[int] = []
    stays, joins = started(serve(first)), started(serve(second))
    attention, expert = one_and(1)
    stays.offer(1, expert)
    attention.open_step(1, 1)
    # Ranks keep their numbers: 1 stays, 4 is new. The next groups stand beside the old ones.
    here = [Ranks((0,), (1, 4), own) for own in (0, 1, 4)]
    next_attention, next_stays, next_joins = meet(here, epoch=2)
    stays.offer(2, next_stays)
    joins.offer(2, next_joins)
    attention.open_step(1, 1)
    headers = attention.open_step(7, 1, next_epoch=2)
    assert all_move(headers)
    assert stays.left() == (1, True)
    next_attention.open_step(7, 1)
    next_attention.open_step(0, 1, stop=True)
    assert stays.ended() and joins.ended()
    assert (first, second) == ([1, 1, 2], [2])


def test_nobody_moves_before_all_attention_ranks_are_told() -> None:
    attention = meet([Ranks((0, 1), (), own) for own in (0, 1)])

    def step(first: int, second: int) -> bool:
        with ThreadPoolExecutor(2) as pool:
            opened = [
                pool.submit(one.open_step, 1, 1, next_epoch=told)
                for one, told in zip(attention, (first, second), strict=True)
            ]
            answers = [all_move(one.result(TIMEOUT_S)) for one in opened]
        assert answers[0] == answers[1]
        return answers[0]

    assert not step(0, 0)
    assert not step(3, 0)
    assert not step(0, 3)
    assert not step(2, 3)
    assert step(3, 3)


def test_an_older_epoch_is_not_begun_any_more(
    started: Callable[[Callable[[Epoch], LoopEnd]], Loop],
) -> None:
    steps: list[int] = []
    loop = started(serve(steps))
    attention, expert = one_and(1, epoch=5)
    _late, late_expert = one_and(1, epoch=4)
    loop.offer(5, expert)
    attention.open_step(1, 1)
    loop.offer(4, late_expert)
    attention.abort()
    assert loop.left() == (5, False)
    loop.epochs.stop()
    assert loop.ended()
    assert steps == [5]


def test_an_epoch_that_was_given_up_is_not_begun_however_late_its_ranks_have_met(
    started: Callable[[Callable[[Epoch], LoopEnd]], Loop],
) -> None:
    steps: list[int] = []
    loop = started(serve(steps))
    attention, expert = one_and(1, epoch=4)
    _given_up, late_expert = one_and(1, epoch=5)
    after, after_expert = one_and(1, epoch=6)
    loop.offer(4, expert)
    attention.open_step(1, 1)
    loop.epochs.interrupt(5)  # the router had begun to form it, and knows of a loss
    assert loop.left() == (4, False)
    loop.offer(5, late_expert)
    loop.offer(6, after_expert)
    after.open_step(1, 1)
    after.abort()
    assert loop.left() == (6, False)
    loop.epochs.stop()
    assert loop.ended()
    assert steps == [4, 6]


def test_interrupt_reaches_a_loop_from_outside(
    started: Callable[[Callable[[Epoch], LoopEnd]], Loop],
) -> None:
    begun = threading.Event()

    def body(epoch: Epoch) -> LoopEnd:
        begun.set()
        epoch.exchange.await_step()
        return "stop"

    _attention, expert = one_and(1)
    loop = started(body)
    loop.offer(7, expert)
    assert begun.wait(TIMEOUT_S)
    loop.epochs.interrupt(0)
    assert loop.left() == (7, False)
