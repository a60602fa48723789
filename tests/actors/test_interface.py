from __future__ import annotations

import psutil

from actors.ranks.interface import interface_of
from actors.ranks.process_group import choose_interface


def test_the_interface_that_has_the_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family.name == "AF_INET":
                assert interface_of(address.address) == name


def test_an_address_of_nobody_here() -> None:
    assert interface_of("203.0.113.7") is None


def test_nccl_uses_the_interface_that_peers_know() -> None:
    environment: dict[str, str] = {}
    choose_interface("127.0.0.1", environment)
    assert environment == {"NCCL_SOCKET_IFNAME": "=lo"}


def test_what_the_user_has_chosen_for_nccl_stays() -> None:
    environment = {"NCCL_SOCKET_IFNAME": "ib0"}
    choose_interface("127.0.0.1", environment)
    assert environment == {"NCCL_SOCKET_IFNAME": "ib0"}


def test_nccl_is_left_alone_where_no_interface_has_the_address() -> None:
    environment: dict[str, str] = {}
    choose_interface("203.0.113.7", environment)
    assert environment == {}
