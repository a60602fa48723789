"""Forming one epoch after another from the router's side: after a loss, or beside a running one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any

from torch.distributed import TCPStore

from actors.process_group import Rendezvous, host_store
from actors.spawn import Member
from model.placement import ExpertPlacement


class Groups:
    """Counts the epochs; the ranks meet at a store in this process."""

    def __init__(self, host: str, num_attention: int, timeout_s: float) -> None:
        """Give each meeting `timeout_s` seconds; ranks reach this process at `host`."""
        self._host = host
        self._num_attention = num_attention
        self._timeout_s = timeout_s
        self._store: TCPStore | None = None
        self._newest = 0
        self.epoch = 1  # the one in force; the only one where ranks have nothing to exchange

    async def meet(self, members: Mapping[int, Member], placement: ExpertPlacement) -> None:
        """Form the next epoch of ranks that are in none: new ones, or suspended ones.

        Raises:
            RayError: one died, or could not meet the others.
            TimeoutError: not within the timeout.
        """
        self.epoch = await self._form(members, placement)

    async def switch(
        self,
        old: Mapping[int, Member],
        new: Mapping[int, Member],
        placement: ExpertPlacement,
    ) -> None:
        """Go over from the epoch of `old`, which runs, to one of `new`, between two steps.

        Until all of `new` have met, nothing has changed. Returns when nobody is in the old one.
        Raises as `meet` does.
        """
        epoch = await self._form(new, placement)
        watches = [member.handle.watch.remote(self.epoch) for member in old.values()]
        attention = [member for rank, member in old.items() if rank < self._num_attention]
        await all_of((member.handle.move.remote(epoch) for member in attention), self._timeout_s)
        await all_of(watches, self._timeout_s)
        self.epoch = epoch

    async def _form(self, members: Mapping[int, Member], placement: ExpertPlacement) -> int:
        if self._store is None:
            self._store = host_store(self._host, self._timeout_s)
        self._newest += 1
        meeting = Rendezvous(self._host, self._store.port, self._newest, self._timeout_s)
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


async def all_of(calls: Iterable[Awaitable[Any]], timeout_s: float) -> None:
    """Wait for all calls; the first error is everybody's.

    Raises:
        RayError: of the call that failed first.
        TimeoutError: not all had ended in time.
    """
    await asyncio.wait_for(asyncio.gather(*calls), timeout_s)


def forget(future: asyncio.Future[Any]) -> None:
    """Take note of a result nobody waits for, so that asyncio does not complain of it."""
    if not future.cancelled():
        future.exception()
