"""Ports of a cluster of our own: free, and not the one that the server itself will listen on."""

from __future__ import annotations

import socket
from pathlib import Path
from unittest import mock

import pytest

from cluster.local_ray import free_ports, serve_environment

RANGE = "cluster.local_ray._UNCLAIMED_PORTS"


@pytest.fixture
def ports() -> list[int]:
    """Six in a row, free a moment ago."""
    for first in range(20000, 30000, 6):
        row = range(first, first + 6)
        with mock.patch(RANGE, row):
            try:
                return sorted(free_ports(6))
            except OSError:
                continue
    raise OSError("no six ports in a row are free")


def test_no_part_of_serve_gets_the_port_of_the_server(ports: list[int], tmp_path: Path) -> None:
    for http_port in ports[:5]:
        with mock.patch(RANGE, ports[:5]):
            settings = serve_environment(tmp_path, 1.0, http_port)
        given = [int(value) for key, value in settings.items() if key.endswith("_PORT")]
        assert sorted([*given, http_port]) == ports[:5]


def test_a_port_that_somebody_listens_on_is_not_free(ports: list[int]) -> None:
    with mock.patch(RANGE, ports), socket.create_server(("127.0.0.1", ports[2])):
        assert sorted(free_ports(5)) == ports[:2] + ports[3:]
        with pytest.raises(OSError, match="fewer than 6 free ports"):
            free_ports(6)
