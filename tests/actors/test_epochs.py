"""A rank's loop over epochs: a lost peer ends one for all, the next one goes on."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from actors.epochs import Epochs
from actors.process_group import Rendezvous, host_store, join
from model.exchange import Exchange, PeerLost, Ranks

HOST = "127.0.0.1"
CPU = torch.device("cpu")
TIMEOUT_S = 30.0


def meet(size: int, epoch: int = 1) -> list[Exchange]:
    """One exchange per rank of a new group; the first rank is the attention rank."""
    store = host_store(HOST, TIMEOUT_S)
    meeting = Rendezvous(HOST, store.port, epoch, TIMEOUT_S)
    ranks = [Ranks(1, size - 1, own) for own in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda r: join(meeting, r, HOST, CPU), ranks))


def test_abort_fails_a_receive_that_is_blocked_here_and_there() -> None:
    attention, first, second = meet(3)
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


def test_a_loop_leaves_a_lost_epoch_and_begins_the_next() -> None:
    lost: list[int] = []
    left = threading.Event()
    steps: list[int] = []

    def on_lost(epoch: int) -> None:
        lost.append(epoch)
        left.set()

    def loop(exchange: Exchange) -> None:
        while not exchange.await_step()[0].stop:
            steps.append(len(lost))

    epochs = Epochs(on_lost)
    attention, expert = meet(2)
    epochs.begin(1, expert)
    thread = threading.Thread(target=epochs.run, args=(loop,))
    thread.start()
    attention.open_step(1, 1)
    attention.abort()
    assert left.wait(TIMEOUT_S)
    attention, expert = meet(2, epoch=2)
    epochs.begin(2, expert)
    attention.open_step(1, 1)
    attention.open_step(0, 1, stop=True)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert lost == [1]
    assert steps == [0, 1]


def test_interrupt_and_stop_reach_a_loop_from_outside() -> None:
    lost: list[int] = []
    left = threading.Event()

    def on_lost(epoch: int) -> None:
        lost.append(epoch)
        left.set()

    epochs = Epochs(on_lost)
    _attention, expert = meet(2)
    begun = threading.Event()

    def loop(exchange: Exchange) -> None:
        begun.set()
        exchange.await_step()

    epochs.begin(7, expert)
    thread = threading.Thread(target=epochs.run, args=(loop,))
    thread.start()
    assert begun.wait(TIMEOUT_S)
    epochs.interrupt()
    assert left.wait(TIMEOUT_S)
    epochs.stop()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert lost == [7]
