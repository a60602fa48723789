"""How busy a placement makes each rank of a layer, replicated experts being split at will.

A set of ranks cannot pass on the rows of those experts that no other rank holds. So the busiest
rank has at least the largest mean, over all sets, of such rows per rank; by the max-flow min-cut
theorem it need not have more. All 2^ranks sets are looked at: of Mixtral's eight experts no more
than eight ranks are ever made.
Shape suffixes: E experts, S sets of ranks (the set is the index's bits), C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Load = Sequence[Sequence[float]]  # rows per [layer][expert] in the recent window
Masks = tuple[int, ...]  # per expert the ranks that hold it: bit i for the i-th rank

_ROUNDING = 1e-9  # relative


class LayerLoads:
    """The ranks' rows in one layer with loads `load_E`, for any placement of its experts."""

    def __init__(self, load_E: Sequence[float], num_ranks: int) -> None:
        self._load_E = np.asarray(load_E, np.float64)
        self._num_ranks = num_ranks
        self._size_S = np.array([index.bit_count() for index in range(1 << num_ranks)])
        self.mean = float(self._load_E.sum()) / num_ranks

    def _confined(self, masks_CE: np.ndarray) -> np.ndarray:
        """[S, C]: rows of the experts all of whose holders are in the set."""
        num_candidates = len(masks_CE)
        flat_CE = masks_CE * num_candidates + np.arange(num_candidates)[:, None]
        load_CE = np.broadcast_to(self._load_E, masks_CE.shape)
        length = num_candidates << self._num_ranks
        rows_SC: np.ndarray = np.bincount(flat_CE.ravel(), load_CE.ravel(), length)
        for index in range(self._num_ranks):
            without_and_with = rows_SC.reshape(-1, 2, num_candidates << index)
            without_and_with[:, 1] += without_and_with[:, 0]
        return rows_SC.reshape(-1, num_candidates)

    def _per_rank(self, masks_CE: np.ndarray) -> np.ndarray:
        """[S - 1, C]: the same divided by the size of the set, the empty one left out."""
        per_rank_SC: np.ndarray = self._confined(masks_CE)[1:] / self._size_S[1:, None]
        return per_rank_SC

    def peaks(self, masks_CE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[C] rows of the busiest rank, and [C] how far all sets together exceed the mean.

        Every expert needs a holder. The second figure tells equal peaks apart: it falls when
        one of two equally busy ranks is relieved.
        """
        per_rank_SC = self._per_rank(masks_CE)
        excess_C: np.ndarray = np.square(np.maximum(per_rank_SC - self.mean, 0.0)).sum(0)
        peak_C: np.ndarray = per_rank_SC.max(0)
        return peak_C, excess_C

    def busiest(self, masks: Masks) -> int:
        """All ranks that share the peak, as a bit mask."""
        per_rank_S = self._per_rank(np.array([masks]))[:, 0]
        tight = np.flatnonzero(per_rank_S >= per_rank_S.max() * (1 - _ROUNDING)) + 1
        return int(np.bitwise_or.reduce(tight))

    def fair(self, masks: Masks) -> list[float]:
        """Each rank's rows when they are split as evenly as can be, from the busiest set down.

        The rows of an expert without a holder count nowhere.
        """
        confined_S = self._confined(np.array([masks]))[:, 0]
        sets = np.arange(1 << self._num_ranks)
        done, loads = 0, [0.0] * self._num_ranks
        while done != sets[-1]:
            rest = sets[(sets & done == done) & (sets != done)]
            size = self._size_S[rest] - done.bit_count()
            per_rank = (confined_S[rest] - confined_S[done]) / size
            top = int(np.argmax(per_rank))
            for index in range(self._num_ranks):
                if int(rest[top]) & ~done & 1 << index:
                    loads[index] = max(0.0, float(per_rank[top]))
            done = int(rest[top])
        return loads


def as_masks(holders_E: Sequence[Sequence[int]], ranks: Sequence[int]) -> Masks:
    """Each expert's holders as bits; those that are not among `ranks` are left out."""
    bits = {rank: 1 << index for index, rank in enumerate(ranks)}
    return tuple(sum(bits.get(rank, 0) for rank in holders) for holders in holders_E)


def as_holders(masks: Masks, ranks: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The inverse: each expert's holders in ascending order."""
    return tuple(
        tuple(sorted(rank for index, rank in enumerate(ranks) if mask & 1 << index))
        for mask in masks
    )


def rank_loads(
    load_E: Sequence[float], holders_E: Sequence[Sequence[int]], ranks: Sequence[int]
) -> dict[int, float]:
    """Rows of each of `ranks` in one layer when replicated experts are split evenly."""
    return dict(zip(ranks, LayerLoads(load_E, len(ranks)).fair(as_masks(holders_E, ranks))))
