"""Messages between ranks on CPU over sockets, one connection for each pair of ranks.

gloo asks the receiver before each send and passes what comes through a thread of its own. Here
whoever waits reads and writes itself. A message is its length and tag (16 bytes) and a body; the
compiled library sends and receives such messages too (model/cpu_kernels/messages.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Mapping, Sequence

import torch

from model.exchange import HEAD_BYTES, PeerLost

_HEAD = struct.Struct("<qq")


class SocketGroup:
    """Sends and receives of one thread; only `abort` may be called by others.

    Messages from one rank to another arrive in their order, so a tag is only checked. What the
    kernel does not take at once goes while the thread waits, for whichever message.
    """

    def __init__(self, ends: Mapping[int, socket.socket], timeout_s: float) -> None:
        """`ends` are connected sockets, by the index of the rank at the other end."""
        timeout = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
        for end in ends.values():
            end.setblocking(True)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        self._peers = {index: _Peer(index, end) for index, end in ends.items()}
        self._traffic = _Traffic(list(self._peers.values()), timeout_s)

    def __del__(self) -> None:
        for peer in self._peers.values():
            peer.end.close()

    def send(self, tensor: torch.Tensor, index: int, tag: int) -> _Sent:
        """Start sending a tensor on the host. Raises PeerLost."""
        peer = self._peers[index]
        body = _memory_of(tensor)
        sent = 0 if peer.unsent else peer.write([_HEAD.pack(len(body), tag), body])
        if sent == HEAD_BYTES + len(body):
            return _SENT
        return self.send_rest(tensor, index, tag, sent)

    def send_rest(self, tensor: torch.Tensor, index: int, tag: int, num_sent: int) -> _Send:
        """Go on sending a message of which the kernel has taken so many bytes, head included."""
        body = _memory_of(tensor)
        work = _Send(self._traffic, tensor, [memoryview(_HEAD.pack(len(body), tag))])
        if len(body):  # a view of nothing cannot be cast
            work.left.append(memoryview(body).cast("B"))
        work.took(num_sent)
        self._peers[index].unsent.append(work)
        self._traffic.num_unsent += 1
        return work

    def receive(self, tensor: torch.Tensor, index: int, tag: int) -> _Receive:
        """Expect a message no longer than this tensor on the host."""
        peer = self._peers[index]
        work = _Receive(self._traffic, peer, tensor, tag)
        peer.expected.append(work)
        return work

    @property
    def num_unsent(self) -> int:
        """Messages of which the kernel has not taken everything."""
        return self._traffic.num_unsent

    def file(self, index: int) -> int:
        """The descriptor of the socket to a rank; good for as long as the group is there."""
        return self._peers[index].end.fileno()

    def lost(self, index: int, number: int) -> PeerLost:
        """What to raise where the compiled library met this errno: see messages.h."""
        return self._peers[index].lost(OSError(number, os.strerror(number)))

    def abort(self) -> None:
        """Fail what is under way, here and at the other ends. Any thread."""
        for peer in self._peers.values():
            try:
                peer.end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it was before


class _Traffic:
    """What is under way with all peers. Knows no group: who drops that has its sockets closed."""

    def __init__(self, peers: list[_Peer], timeout_s: float) -> None:
        self._peers = peers
        self._timeout_s = timeout_s
        self.num_unsent = 0

    def complete(self, work: _Receive) -> None:
        """Return once a message is there.

        Raises:
            PeerLost: its peer is gone, or nothing moved for the group's timeout.
        """
        while not work.done:
            if self.num_unsent:
                self.move()
            else:
                work.peer.read(socket.MSG_WAITALL)

    def move(self) -> None:
        """Write and read what can be, once any can.

        Raises:
            PeerLost: a peer is gone, or nothing moved for the group's timeout.
        """
        poll = select.poll()
        peers = {peer.end.fileno(): peer for peer in self._peers}
        for fileno, peer in peers.items():
            events = select.POLLOUT * bool(peer.unsent) | select.POLLIN * bool(peer.expected)
            if events:
                poll.register(fileno, events)
        ready = poll.poll(self._timeout_s * 1000)
        if not ready:
            raise PeerLost(f"no message moved for {self._timeout_s:g} s")
        for fileno, events in ready:
            peer = peers[fileno]
            if events & ~select.POLLOUT and peer.expected:
                peer.read(socket.MSG_DONTWAIT)
            elif peer.unsent:  # or it is gone, which shows
                work = peer.unsent[0]
                work.took(peer.write(work.left))
                if not work.left:
                    peer.unsent.popleft()
                    self.num_unsent -= 1


class _Sent:
    """A message that the kernel took at once."""

    def wait(self) -> None:
        """Nothing is left to wait for."""


_SENT = _Sent()


class _Send(_Sent):
    """A message of which some is left to send."""

    __slots__ = ("_tensor", "_traffic", "left")

    def __init__(self, traffic: _Traffic, tensor: torch.Tensor, left: list[memoryview]) -> None:
        self._traffic = traffic
        self._tensor = tensor  # keeps the memory
        self.left = left

    def took(self, num_bytes: int) -> None:
        """The kernel did."""
        while self.left and num_bytes >= len(self.left[0]):
            num_bytes -= len(self.left.pop(0))
        if num_bytes:
            self.left[0] = self.left[0][num_bytes:]

    def wait(self) -> None:
        """Block until the kernel has taken it all. Raises PeerLost as `move` does."""
        while self.left:
            self._traffic.move()


class _Receive:
    """A message that is expected."""

    __slots__ = ("_tensor", "_traffic", "done", "memory", "peer", "tag")

    def __init__(self, traffic: _Traffic, peer: _Peer, tensor: torch.Tensor, tag: int) -> None:
        self._traffic = traffic
        self._tensor = tensor  # keeps the memory
        self.peer = peer
        self.memory = _memory_of(tensor)
        self.tag = tag
        self.done = False

    def wait(self) -> None:
        """Block until it is there. Raises PeerLost as `complete` does."""
        if not self.done:
            self._traffic.complete(self)


class _Peer:
    """One end of a connection, and what is under way on it, oldest first."""

    def __init__(self, index: int, end: socket.socket) -> None:
        self.index = index
        self.end = end
        self.unsent: deque[_Send] = deque()
        self.expected: deque[_Receive] = deque()
        self._head = bytearray(HEAD_BYTES)
        self._num_head = 0  # bytes of it that are there, of the first that is expected
        self._num_body = 0

    def write(self, pieces: Sequence[bytes | memoryview | _Memory]) -> int:
        """Give the kernel what it takes at once; returns how many bytes."""
        try:
            return self.end.sendmsg(pieces, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self.lost(error) from error

    def lost(self, error: OSError) -> PeerLost:
        """What an error of the connection means."""
        rank = f"rank {self.index} of the group"
        if error.errno == errno.EAGAIN:
            return PeerLost(f"{rank} said nothing in time")
        if error.errno == errno.EPROTO:
            return PeerLost(f"{rank} sent another message than the expected one")
        return PeerLost(f"{rank} is gone: {error}")

    def read(self, flags: int) -> None:
        """Go on with the message that is expected first: its head, and then its body."""
        work = self.expected[0]
        if self._num_head < HEAD_BYTES:
            self._num_head += self._receive_into(self._head, self._num_head, HEAD_BYTES, flags)
            if self._num_head < HEAD_BYTES:
                return
        size, tag = _HEAD.unpack(self._head)
        if tag != work.tag or not 0 <= size <= len(work.memory):
            raise PeerLost(
                f"rank {self.index} of the group sent {size} bytes of tag {tag} instead of "
                f"{len(work.memory)} at most of tag {work.tag}"
            )
        if self._num_body < size:
            self._num_body += self._receive_into(work.memory, self._num_body, size, flags)
            if self._num_body < size:
                return
        self._num_head = self._num_body = 0
        work.done = True
        self.expected.popleft()

    def _receive_into(self, memory: bytearray | _Memory, start: int, end: int, flags: int) -> int:
        try:
            if start:
                rest = memoryview(memory).cast("B")[start:end]
                received = self.end.recv_into(rest, end - start, flags)
            else:
                received = self.end.recv_into(memory, end, flags)
        except OSError as error:
            if isinstance(error, BlockingIOError) and flags == socket.MSG_DONTWAIT:
                return 0
            raise self.lost(error) from error
        if not received:
            raise PeerLost(f"rank {self.index} of the group is gone")
        return received


_Memory = ctypes.Array[ctypes.c_char]


def _memory_of(tensor: torch.Tensor) -> _Memory:
    assert tensor.is_contiguous()
    return (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
