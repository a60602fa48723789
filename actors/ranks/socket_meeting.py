"""Connecting the expert ranks to the attention ranks: in the kernel on one host, else over TCP.

Attention ranks listen, and say in the store where. Who connects says the secret found there, which
a stranger that reaches the port does not know, and its own index.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import socket
import time
from pathlib import Path

from torch._C._distributed_c10d import Store

from actors.ranks.socket_group import SocketGroup
from actors.tcp_silence import end_on_silence
from model.exchange import Ranks

_SECRET_BYTES, _INDEX_BYTES = 16, 4
_HELLO_TIMEOUT_S = 5.0
_SEND_BUFFER_BYTES = 4 * 2**20  # or what the kernel allows: nobody writes while a rank computes


def connect(store: Store, ranks: Ranks, own_host: str, timeout_s: float) -> SocketGroup:
    """Connect this rank with every one of the other role. Blocks until all are there.

    Raises:
        RuntimeError: one did not come in time.
    """
    deadline_s = time.monotonic() + timeout_s
    try:
        if ranks.own in ranks.attention:
            ends = _accept_all(store, ranks, own_host, deadline_s)
        else:
            ends = {
                ranks.index(rank): _reach(store, ranks, rank, deadline_s)
                for rank in ranks.attention
            }
    except OSError as error:
        raise RuntimeError(f"no connection for rows: {error}") from error
    return SocketGroup(ends, timeout_s)


def _accept_all(
    store: Store, ranks: Ranks, own_host: str, deadline_s: float
) -> dict[int, socket.socket]:
    secret = secrets.token_bytes(_SECRET_BYTES)
    missing = {ranks.index(rank) for rank in ranks.expert}
    ends: dict[int, socket.socket] = {}
    family = socket.AF_INET6 if ":" in own_host else socket.AF_INET
    with (
        socket.socket(socket.AF_UNIX) as near,
        socket.create_server((own_host, 0), family=family) as far,
    ):
        near.bind("")  # a name of the kernel's choice, and no file
        near.listen()
        address = {
            "kernel": _kernel(),
            "near": near.getsockname().hex(),
            "far": far.getsockname()[:2],
            "secret": secret.hex(),
        }
        store.set(_key(ranks.own), json.dumps(address))
        listeners = {near.fileno(): near, far.fileno(): far}
        poll = select.poll()
        for fileno in listeners:
            poll.register(fileno, select.POLLIN)
        while missing:
            ready = poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000)
            if not ready:
                raise TimeoutError(f"{len(missing)} expert ranks did not come in time")
            for fileno, _ in ready:
                end, _ = listeners[fileno].accept()
                index = _hear(end, secret)
                if index in missing:
                    missing.remove(index)
                    ends[index] = _prepared(end)
                else:
                    end.close()
    return ends


def _hear(end: socket.socket, secret: bytes) -> int | None:
    """The index that another end says; None if it is none of ours."""
    end.settimeout(_HELLO_TIMEOUT_S)
    hello = b""
    while len(hello) < _SECRET_BYTES + _INDEX_BYTES:
        try:
            piece = end.recv(_SECRET_BYTES + _INDEX_BYTES - len(hello))
        except OSError:
            return None
        if not piece:
            return None
        hello += piece
    if not secrets.compare_digest(hello[:_SECRET_BYTES], secret):
        return None
    return int.from_bytes(hello[_SECRET_BYTES:], "big")


def _reach(store: Store, ranks: Ranks, rank: int, deadline_s: float) -> socket.socket:
    address = json.loads(store.get(_key(rank)))
    left_s = max(0.001, deadline_s - time.monotonic())
    if address["kernel"] and address["kernel"] == _kernel():
        end = socket.socket(socket.AF_UNIX)
        end.settimeout(left_s)
        end.connect(bytes.fromhex(address["near"]))
    else:
        host, port = address["far"]
        end = socket.create_connection((host, port), left_s)
    secret = bytes.fromhex(address["secret"])
    end.sendall(secret + ranks.index(ranks.own).to_bytes(_INDEX_BYTES, "big"))
    return _prepared(end)


def _prepared(end: socket.socket) -> socket.socket:
    if end.family == socket.AF_UNIX:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    else:  # whose buffers grow by themselves
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end_on_silence(end)
    return end


def _key(rank: int) -> str:
    return f"attention{rank}"


def _kernel() -> str:
    """Names the network of this kernel that processes here share; empty if there is no telling."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/net')}"
    except OSError:
        return ""
