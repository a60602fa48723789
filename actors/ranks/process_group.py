"""Forming the process groups of a pipeline: rendezvous, construction, first contact.

The groups are plain objects, not torch's global default group, so that a pipeline can form new
ones (a new epoch) when a rank is replaced. DESIGN words: control group, data group, epoch.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from actors.ranks.interface import interface_of
from actors.ranks.rendezvous import Rendezvous
from actors.ranks.socket_meeting import connect
from actors.ranks.torch_group import GlooGroup, TorchGroup
from model.exchange import Exchange, PointToPoint, Ranks


def join(
    rendezvous: Rendezvous,
    ranks: Ranks,
    own_host: str,
    device: torch.device,
    *,
    one_message: bool = True,
) -> Exchange:
    """Meet all other ranks and return the way to talk to them. Blocks until every rank is there.

    `own_host` is the address peers reach this process at (Ray's node address): gloo binds the
    interface that has it, and NCCL is told to. `one_message` False forces split messages, as NCCL
    needs them.

    Raises:
        RuntimeError: a rank did not come in time.
    """
    timeout = timedelta(seconds=rendezvous.timeout_s)
    store = TCPStore(rendezvous.host, rendezvous.port, is_master=False, timeout=timeout)
    prefix = f"epoch{rendezvous.epoch}"
    control = _gloo(PrefixStore(f"{prefix}/control", store), ranks, own_host, timeout)
    if device.type == "cpu":
        data: PointToPoint = control
        if rendezvous.cpu_transport == "sockets":
            meeting = PrefixStore(f"{prefix}/rows", store)
            data = connect(meeting, ranks, own_host, rendezvous.timeout_s)
        return Exchange(
            ranks, control, data, one_message=one_message, patience_s=rendezvous.timeout_s
        )
    choose_interface(own_host, os.environ)
    data = _nccl(PrefixStore(f"{prefix}/data", store), ranks, device, timeout)
    return Exchange(ranks, control, data, one_message=False, patience_s=rendezvous.timeout_s)


def choose_interface(own_host: str, environment: MutableMapping[str, str]) -> None:
    """Have NCCL use the interface that has this address, unless its user has named another.

    By itself it takes the first one it finds. It asks the environment, once per process.
    """
    interface = interface_of(own_host)
    if interface is not None:
        environment.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # "=": this name exactly


def _gloo(store: Store, ranks: Ranks, own_host: str, timeout: timedelta) -> GlooGroup:
    gloo: Any = dist.ProcessGroupGloo  # its options are not in the type stubs
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=own_host)]
    options._timeout = timeout
    group = gloo(store, ranks.index(ranks.own), ranks.size, options)
    return GlooGroup(group, [ranks.index(rank) for rank in ranks.others])


def _nccl(store: Store, ranks: Ranks, device: torch.device, timeout: timedelta) -> TorchGroup:
    nccl: Any = dist.ProcessGroupNCCL  # absent from builds without CUDA
    options = nccl.Options()
    options._timeout = timeout
    torch.cuda.set_device(device)
    group = TorchGroup(nccl(store, ranks.index(ranks.own), ranks.size, options))
    _first_contact(group, ranks, device)
    return group


def _first_contact(group: TorchGroup, ranks: Ranks, device: torch.device) -> None:
    """Exchange one row with every partner: NCCL connects a pair at its first message, slowly."""
    row = torch.zeros(1, device=device)
    own_is_attention = ranks.own in ranks.attention
    for rank in ranks.expert if own_is_attention else ranks.attention:
        index = ranks.index(rank)
        if own_is_attention:
            group.send(row, index, 0).wait()
            group.receive(row, index, 0).wait()
        else:
            group.receive(row, index, 0).wait()
            group.send(row, index, 0).wait()
    torch.cuda.synchronize(device)
