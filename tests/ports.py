"""Ports that nobody listens on."""

from __future__ import annotations

from cluster.local_ray import free_ports

_given: set[int] = set()


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago; never the same twice."""
    [port] = free_ports(1, but=_given)
    _given.add(port)
    return port
