"""Messages between ranks over sockets: real ones, between threads, in the kernel and over TCP."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from actors.ranks import socket_meeting
from actors.ranks.socket_group import SocketGroup
from actors.ranks.socket_meeting import connect
from model.exchange import PeerLost, Ranks

HOST = "127.0.0.1"
TIMEOUT_S = 20.0
LARGE = 8 * 2**20  # more than any socket holds
Meet = Callable[..., list[SocketGroup]]


@pytest.fixture(params=["kernel", "tcp"])
def meet(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Meet:
    """Groups of all ranks, attention first, with so many seconds for each wait."""
    if request.param == "tcp":  # as between machines that are not known to be one
        monkeypatch.setattr(socket_meeting, "_kernel", lambda: "")

    def groups(attention: int, expert: int, timeout_s: float = TIMEOUT_S) -> list[SocketGroup]:
        store = HashStore()
        ranks = [Ranks.of(attention, expert, own) for own in range(attention + expert)]
        with ThreadPoolExecutor(len(ranks)) as pool:
            made = list(pool.map(lambda own: connect(store, own, HOST, TIMEOUT_S), ranks))
        family = socket.AF_INET if request.param == "tcp" else socket.AF_UNIX
        for group in made:
            for peer in group._peers.values():
                assert peer.end.family == family
        return [SocketGroup(taken_ends(group), timeout_s) for group in made]

    return groups


def taken_ends(group: SocketGroup) -> dict[int, socket.socket]:
    return {index: peer.end.dup() for index, peer in group._peers.items()}


def numbers(count: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=random)


def test_messages_arrive_whole_and_in_their_order(meet: Meet) -> None:
    groups = meet(2, 3)
    sizes = [0, 1, 5, 70_000, 0, 3]
    for attention in (0, 1):
        for expert in (2, 3, 4):
            for way, (a, b) in enumerate(((attention, expert), (expert, attention))):
                sent = [numbers(size, 10 * a + b) for size in sizes]
                sends = [groups[a].send(one, b, 7 + way) for one in sent]
                for one in sent:
                    # A buffer may be longer than the message; what is behind it stays.
                    buffer = torch.full((len(one) + 9,), 99, dtype=torch.uint8)
                    groups[b].receive(buffer, a, 7 + way).wait()
                    assert torch.equal(buffer[: len(one)], one)
                    assert (buffer[len(one) :] == 99).all()
                for send in sends:
                    send.wait()


def test_any_type_is_bytes(meet: Meet) -> None:
    attention, expert = meet(1, 1)
    sent = torch.arange(12, dtype=torch.bfloat16).view(3, 4)
    there = torch.full((6, 4), torch.nan, dtype=torch.bfloat16)
    attention.send(sent, 1, 1).wait()
    expert.receive(there[2:5], 0, 1).wait()
    assert torch.equal(there[2:5], sent)
    assert there[[0, 1, 5]].isnan().all()


def test_large_messages_both_ways_at_once_do_not_block_each_other(meet: Meet) -> None:
    attention, *experts = meet(1, 2)
    ways = [numbers(LARGE, seed) for seed in range(4)]

    def expert_side(number: int) -> torch.Tensor:
        group, there = experts[number], torch.empty(LARGE, dtype=torch.uint8)
        sends = [group.send(ways[2 + number], 0, 2) for _ in range(2)]
        for _ in range(2):
            group.receive(there, 0, 1).wait()
        for one in sends:
            one.wait()
        return there

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(expert_side, number) for number in range(2)]
        sends = [attention.send(ways[n], 1 + n, 1) for n in (0, 1, 0, 1)]
        came = torch.zeros(4, LARGE, dtype=torch.uint8)
        receives = [attention.receive(came[i], 1 + i % 2, 2) for i in range(4)]
        for receive in receives:
            receive.wait()
        for send in sends:
            send.wait()
        for n, other in enumerate(others):
            assert torch.equal(other.result(), ways[n])
    for i in range(4):
        assert torch.equal(came[i], ways[2 + i % 2])


def test_messages_behind_one_that_waits_arrive_in_their_order(meet: Meet) -> None:
    attention, expert = meet(1, 1)
    sent = [numbers(size, size) for size in (LARGE, 0, 3, 0)]
    sends = [attention.send(one, 1, 1) for one in sent]
    there = [torch.empty_like(one) for one in sent]
    with ThreadPoolExecutor(1) as pool:
        receives = [expert.receive(one, 0, 1) for one in there]
        heard = [pool.submit(receive.wait) for receive in receives]
        for send in sends:
            send.wait()
        for one in heard:
            one.result(TIMEOUT_S)
    assert all(torch.equal(a, b) for a, b in zip(sent, there, strict=True))


@pytest.mark.parametrize(("size", "tag"), [(9, 1), (8, 2)])
def test_a_message_that_is_not_the_expected_one_ends_it(meet: Meet, size: int, tag: int) -> None:
    attention, expert = meet(1, 1)
    attention.send(numbers(size), 1, tag)
    with pytest.raises(PeerLost, match=f"sent {size} bytes of tag {tag} instead of 8"):
        expert.receive(numbers(8), 0, 1).wait()


@pytest.mark.parametrize("sent", [0, 7, 16, 40])
def test_a_peer_that_ends_amid_a_message_is_lost(meet: Meet, sent: int) -> None:
    attention, expert = meet(1, 1)
    message = struct.pack("<qq", 50, 1) + bytes(50)
    attention._peers[1].end.sendall(message[:sent])
    del attention
    with pytest.raises(PeerLost, match="rank 0 of the group is gone"):
        expert.receive(numbers(50), 0, 1).wait()


def test_whoever_drops_a_group_is_lost_to_the_others(meet: Meet) -> None:
    attention, first, second = meet(1, 2)
    attention.receive(numbers(5), 1, 2)  # is still expected
    del attention
    for expert in (first, second):
        with pytest.raises(PeerLost, match="is gone"):
            expert.receive(numbers(5), 0, 1).wait()


def test_an_abort_reaches_who_waits_here_and_there(meet: Meet) -> None:
    attention, expert = meet(1, 1)
    with ThreadPoolExecutor(2) as pool:
        waits = [
            pool.submit(group.receive(numbers(5), index, 1).wait)
            for group, index in ((attention, 1), (expert, 0))
        ]
        attention.abort()
        for wait in waits:
            with pytest.raises(PeerLost):
                wait.result(TIMEOUT_S)
    with pytest.raises(PeerLost):
        attention.send(numbers(5), 1, 1)


def test_silence_is_an_error_after_the_timeout(meet: Meet) -> None:
    attention, expert = meet(1, 1, 0.3)
    began_s = time.monotonic()
    with pytest.raises(PeerLost, match="said nothing"):
        expert.receive(numbers(5), 0, 1).wait()
    with pytest.raises(PeerLost, match=r"no message moved for 0\.3 s"):
        attention.send(numbers(LARGE), 1, 1).wait()
    assert 0.5 < time.monotonic() - began_s < 10.0


def test_a_rank_that_does_not_come_is_an_error_after_the_timeout() -> None:
    with pytest.raises(RuntimeError, match="1 expert ranks did not come in time"):
        connect(HashStore(), Ranks.of(1, 1, 0), HOST, 0.2)
    store = HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    with pytest.raises(RuntimeError):
        connect(store, Ranks.of(1, 1, 1), HOST, 0.2)


def test_strangers_are_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_meeting, "_HELLO_TIMEOUT_S", 0.2)
    store = HashStore()
    ranks = Ranks.of(1, 1, 0)
    with ThreadPoolExecutor(1) as pool:
        meeting = pool.submit(connect, store, ranks, HOST, TIMEOUT_S)
        address = json.loads(store.get("attention0"))
        with (
            socket.create_connection(tuple(address["far"])) as silent,
            socket.create_connection(tuple(address["far"])) as liar,
            socket.create_connection(tuple(address["far"])) as unknown,
        ):
            liar.sendall(bytes(10))
            liar.sendall(bytes(6) + (1).to_bytes(4, "big"))
            unknown.sendall(bytes.fromhex(address["secret"]) + (5).to_bytes(4, "big"))
            for stranger in (silent, liar, unknown):
                stranger.settimeout(TIMEOUT_S)
                assert not stranger.recv(1)
            expert = connect(store, Ranks.of(1, 1, 1), HOST, TIMEOUT_S)
            attention = meeting.result(TIMEOUT_S)
    expert.send(numbers(5), 0, 1).wait()
    there = torch.zeros(5, dtype=torch.uint8)
    attention.receive(there, 1, 1).wait()
    assert torch.equal(there, numbers(5))
