"""How often a token is sent to an expert that the token before it in its sequence was sent to.

The statistic of table 5 of the Mixtral paper (arXiv 2401.04088): per layer, the share of
consecutive tokens with the same first choice, and of those with any chosen expert in common.
Shape suffixes: L layers, T rows, S slots of the KV cache, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import torch

NONE = -1  # the slot before a sequence's first token


@dataclass(frozen=True, slots=True)
class Repeats:
    """Pairs of consecutive tokens, and in how many of them each layer repeated itself."""

    pairs: int = 0
    first: tuple[int, ...] = ()  # by layer: the first choice of both is the same
    any: tuple[int, ...] = ()  # by layer: an expert is among the choices of both


class ExpertRepeats:
    """Counts repeats. Every slot of the KV cache keeps what its token chose: L * K bytes each.

    So a chunk of a prompt, a decode and a prefix that was found cached go on alike from what
    came before, whatever other sequences were in the steps between.
    """

    def __init__(
        self, num_layers: int, num_experts: int, top_k: int, num_slots: int, device: torch.device
    ) -> None:
        dtype = torch.int8 if num_experts <= torch.iinfo(torch.int8).max else torch.int16
        # Before slot 0 lies one that nobody chose anything in: NONE + 1.
        self._chosen_SKL = torch.full(
            (num_slots + 1, top_k, num_layers), -1, dtype=dtype, device=device
        )
        self._top_k = top_k
        self._pairs = torch.zeros((), dtype=torch.int64, device=device)
        self._first_L = torch.zeros(num_layers, dtype=torch.int64, device=device)
        self._any_L = torch.zeros(num_layers, dtype=torch.int64, device=device)

    def count(
        self, ids_LTK: torch.Tensor, slots_T: torch.Tensor, previous_slots_T: torch.Tensor
    ) -> None:
        """Count rows of steps that have ended, in their order.

        Token t is in slots_T[t], the one before it was in previous_slots_T[t] at that time: a slot
        that is there twice has been given to another sequence in between.
        """
        now_TKL = ids_LTK.permute(1, 2, 0).to(self._chosen_SKL.dtype)
        rows = len(slots_T)
        row_T = torch.arange(rows, device=slots_T.device)
        written_T, by_slot_T = (slots_T * rows + row_T).sort()
        # The last row of these that wrote the slot before this one's, ahead of this one.
        at_T = torch.searchsorted(written_T, previous_slots_T * rows + row_T) - 1
        at_T = at_T.clamp_(min=0)
        here_T = (written_T[at_T] < previous_slots_T * rows + row_T) & (
            written_T[at_T] // rows == previous_slots_T
        )
        kept_TKL = self._chosen_SKL.index_select(0, previous_slots_T + 1)
        before_TKL = torch.where(here_T[:, None, None], now_TKL[by_slot_T[at_T]], kept_TKL)
        last_T = torch.ones_like(here_T)
        last_T[:-1] = written_T[1:] // rows != written_T[:-1] // rows
        last_T = by_slot_T[last_T]
        self._chosen_SKL.index_copy_(0, slots_T[last_T] + 1, now_TKL[last_T])
        same_TL = now_TKL[:, 0] == before_TKL[:, 0]
        self._first_L += same_TL.sum(0)
        for i in range(self._top_k):
            for j in range(self._top_k):
                if i or j:
                    same_TL = same_TL | (now_TKL[:, i] == before_TKL[:, j])
        self._any_L += same_TL.sum(0)
        self._pairs += (previous_slots_T != NONE).sum()

    def reset(self) -> None:
        """Forget the counts; what was chosen stays known."""
        for total in (self._pairs, self._first_L, self._any_L):
            total.zero_()

    def totals(self) -> Repeats:
        """Since the start."""
        first, both = tuple(self._first_L.tolist()), tuple(self._any_L.tolist())
        return Repeats(int(self._pairs), first, both)


def random_rates(num_experts: int, top_k: int) -> tuple[float, float]:
    """What a gate that chooses at random repeats: its first choice, and any choice."""
    apart = comb(num_experts - top_k, top_k) / comb(num_experts, top_k)
    return 1 / num_experts, 1 - apart
