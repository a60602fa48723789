"""Which holder of an expert computes which rows: decided anew for every layer of every step.

Shape suffixes: L layers, E experts, T rows, K experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.placement import ExpertPlacement

_PASSES = 5  # over the replicated experts; one is exact where no two of them share a holder


class RowSplit:
    """Evens out the ranks' rows by the replicated experts, built once per placement.

    Every holder that computes for an expert reads its weights. So none gets a run of less than
    half of `min_chunk` rows, and an expert chosen by fewer than `min_chunk` has one holder.

    Raises:
        ValueError: an expert without a holder.
    """

    def __init__(self, placement: ExpertPlacement, min_chunk: int = 16) -> None:
        for layer, experts in enumerate(placement.ranks):
            for expert, holders in enumerate(experts):
                if not holders:
                    raise ValueError(f"expert {expert} of layer {layer} has no holder")
        self._min_chunk = max(1, min_chunk)
        self._first_LE = [
            np.array([holders[0] for holders in experts], np.int64) for experts in placement.ranks
        ]
        self._replicated_L = [
            [(expert, holders) for expert, holders in enumerate(experts) if len(holders) > 1]
            for experts in placement.ranks
        ]
        self._only_L: list[int] = [
            0 if replicated else first_E.ctypes.data
            for first_E, replicated in zip(self._first_LE, self._replicated_L, strict=True)
        ]

    def only_holders(self, layer: int) -> int:
        """Address of int64 [E], the rank of each expert; 0 if one has several in this layer."""
        return self._only_L[layer]

    def holders(self, layer: int, ids_TK: np.ndarray) -> np.ndarray:
        """int64 [T, K]: the rank that computes each choice; the same for the same choices.

        The rows of one expert go to its holders as contiguous runs.
        """
        first_E, replicated = self._first_LE[layer], self._replicated_L[layer]
        if not replicated:
            return first_E.take(ids_TK)
        rows_E: list[int] = np.bincount(ids_TK.ravel(), minlength=len(first_E)).tolist()
        shares = _shares(rows_E, first_E.tolist(), replicated, self._min_chunk)
        holder_E = first_E.copy()
        for expert, runs in shares.items():
            holder_E[expert] = runs[0][0]
        holder_TK = holder_E.take(ids_TK)
        for expert, runs in shares.items():
            if len(runs) > 1:
                where = np.flatnonzero(ids_TK == expert)
                end = runs[0][1]
                for rank, rows in runs[1:]:
                    begin, end = end, end + rows
                    holder_TK.put(where[begin:end], rank)
        return holder_TK


def _shares(
    rows_E: Sequence[int],
    first_E: Sequence[int],
    replicated: Sequence[tuple[int, tuple[int, ...]]],
    min_chunk: int,
) -> dict[int, list[tuple[int, int]]]:
    """Per replicated expert that was chosen: (rank, rows) of those that compute for it."""
    busy = {rank: 0 for _, holders in replicated for rank in holders}
    shared = {expert for expert, _ in replicated}
    for expert, rank in enumerate(first_E):
        if rank in busy and expert not in shared:
            busy[rank] += rows_E[expert]
    chosen = [(expert, holders) for expert, holders in replicated if rows_E[expert]]
    chosen.sort(key=lambda item: -rows_E[item[0]])
    shares: dict[int, list[tuple[int, int]]] = {}
    for _ in range(_PASSES if len(chosen) > 1 else 1):
        before = dict(shares)
        for expert, holders in chosen:
            for rank, rows in shares.get(expert, ()):
                busy[rank] -= rows
            shares[expert] = _levelled(rows_E[expert], holders, busy, min_chunk)
            for rank, rows in shares[expert]:
                busy[rank] += rows
        if shares == before or max(busy.values()) - min(busy.values()) <= min_chunk:
            break
    return shares


def _levelled(
    rows: int, holders: Sequence[int], busy: dict[int, int], min_chunk: int
) -> list[tuple[int, int]]:
    """Water-filling: the least busy holders are filled up to one level."""
    ranks = sorted(holders, key=busy.__getitem__)
    total = rows + sum(busy[rank] for rank in ranks)
    while True:
        level, rest = divmod(total, len(ranks))
        if len(ranks) == 1 or 2 * (level - busy[ranks[-1]]) >= min_chunk:
            break
        total -= busy[ranks.pop()]
    return [(rank, level - busy[rank] + (index < rest)) for index, rank in enumerate(ranks)]
