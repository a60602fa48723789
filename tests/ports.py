"""Ports that nobody listens on."""

from __future__ import annotations

from cluster.local_ray import free_ports


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    return free_ports(1)[0]
