"""Having the kernel notice that the machine at the other end of a connection is gone."""

from __future__ import annotations

import socket

_IDLE_S, _PROBE_S, _PROBES = 4, 2, 3  # one that says nothing for 10 s is


def end_on_silence(end: socket.socket) -> None:
    """End a TCP connection whose peer's machine answers nothing any more, by 10 s after it did."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    silence_ms = 1000 * (_IDLE_S + _PROBE_S * _PROBES)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silence_ms)
