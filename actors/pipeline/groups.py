"""Forming one epoch after another from the router's side: after a loss, or beside a running one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from actors.patience import all_of
from actors.pipeline.spawn import Member
from actors.ranks.rendezvous import Rendezvous, host_store
from configs.process_settings import CpuTransport
from model.placement import ExpertPlacement

if TYPE_CHECKING:
    from torch.distributed import TCPStore


class Groups:
    """Counts the epochs; the ranks meet at a store in this process."""

    def __init__(
        self,
        host: str,
        num_attention: int,
        timeout_s: float,
        cpu_transport: CpuTransport = "sockets",
    ) -> None:
        """Give each meeting `timeout_s` seconds; ranks reach this process at `host`."""
        self._host = host
        self._num_attention = num_attention
        self._timeout_s = timeout_s
        self._cpu_transport = cpu_transport
        self._store: TCPStore | None = None
        self.newest = 0  # that was formed, or begun to be
        self.epoch = 1  # the one in force; the only one where ranks have nothing to exchange

    async def meet(self, members: Mapping[int, Member], placement: ExpertPlacement) -> None:
        """Form the next epoch of ranks that are in none: new ones, or suspended ones.

        Raises:
            RayError: one died, or could not meet the others.
            TimeoutError: not within the timeout.
        """
        self.epoch = await self.form(members, placement)

    async def form(self, members: Mapping[int, Member], placement: ExpertPlacement) -> int:
        """Form an epoch beside the one that runs, for `go_over`; returns its number.

        Raises as `meet` does.
        """
        if self._store is None:
            self._store = host_store(self._host, self._timeout_s)
        self.newest += 1
        meeting = Rendezvous(
            self._host, self._store.port, self.newest, self._timeout_s, self._cpu_transport
        )
        attention = tuple(rank for rank in sorted(members) if rank < self._num_attention)
        expert = tuple(rank for rank in sorted(members) if rank >= self._num_attention)
        await all_of(
            (
                member.handle.meet.remote(meeting, attention, expert, placement)
                for member in members.values()
            ),
            self._timeout_s,
        )
        return meeting.epoch

    async def go_over(self, members: Mapping[int, Member], epoch: int) -> None:
        """Have those who are in the epoch in force leave it for another, between two steps.

        Returns when all have; a step may take as long as it will.

        Raises:
            RayError: one died. Who is in which epoch is not known then.
        """
        watches = [member.handle.watch.remote(self.epoch) for member in members.values()]
        attention = [member for rank, member in members.items() if rank < self._num_attention]
        await all_of(member.handle.move.remote(epoch) for member in attention)
        await all_of(watches)
        self.epoch = epoch
