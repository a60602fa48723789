"""What attention ranks tell all others ahead of each step, and what follows from it for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Self

import torch

_STOP, _ASKS_BUSY = 1, 2
_NUM_NUMBERS = 6  # ahead of the flags
PACKED_SIZE: Final = _NUM_NUMBERS + 1


class StepHeader(NamedTuple):
    """What one attention rank brings to a step; `num_rows` 0 and not `stop`: a heartbeat.

    `num_decodes` of the rows decode. `next_epoch` is the epoch that the sender is ready to go over
    to, or 0. `micro_batches` is what it would cut the step into. One that `asks_busy` hears after
    the step how long the expert ranks were busy.
    """

    step: int
    num_rows: int
    num_decodes: int
    placement_version: int
    next_epoch: int
    micro_batches: int
    stop: bool
    asks_busy: bool

    def packed(self) -> torch.Tensor:
        """As it travels: int64 [PACKED_SIZE]."""
        flags = self.stop * _STOP | self.asks_busy * _ASKS_BUSY
        return torch.tensor([*self[:_NUM_NUMBERS], flags])

    @classmethod
    def unpacked(cls, message: torch.Tensor) -> Self:
        """What `packed` made."""
        step, rows, decodes, version, next_epoch, parts, flags = message.tolist()
        stop, asks_busy = bool(flags & _STOP), bool(flags & _ASKS_BUSY)
        return cls(step, rows, decodes, version, next_epoch, parts, stop, asks_busy)


def all_move(headers: Sequence[StepHeader]) -> bool:
    """Whether the step these headers open is left to the next epoch: all are ready for the same."""
    return headers[0].next_epoch > 0 and len({header.next_epoch for header in headers}) == 1


def agreed_micro_batches(headers: Sequence[StepHeader]) -> int:
    """Into how many micro-batches all ranks cut the step that these headers open.

    The attention rank with most rows decides (of several, the first): the others wait for it.
    """
    return max(headers, key=lambda header: header.num_rows).micro_batches
