"""Which network interface has an address."""

from __future__ import annotations

import psutil


def interface_of(address: str) -> str | None:
    """The interface with this IP address; None where no interface of this machine has it."""
    for name, addresses in psutil.net_if_addrs().items():
        # An IPv6 address of a link is followed by %INTERFACE.
        if any(one.address.split("%")[0] == address for one in addresses):
            return name
    return None
