"""Sorting a layer's rows into one message to each expert rank.

Shape suffixes: T rows, D hidden, K experts per token, R expert ranks, S rows sent, rank after
rank, J ranks a row can go to at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.row_message import RowMessage


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows in each rank's message, and for each row the places among the S of where it went.

    A row that went to fewer than J ranks has the place `nothing` for the others.
    """

    counts: Sequence[int]
    places_JT: torch.Tensor


class RowPacker:
    """Packs by numpy and torch: rows on any device, host routing."""

    def __init__(self, ranks: Sequence[int], most_ranks: int, nothing: int) -> None:
        """For messages to `ranks`, in that order; a row goes to at most `most_ranks` of them."""
        self._ranks_R11 = np.array(ranks, np.int64)[:, None, None]
        self._ends_R = np.arange(1, len(ranks) + 1)
        self._most_ranks = most_ranks
        self._nothing = nothing

    def pack(
        self,
        x_TD: torch.Tensor,
        ids_TK: np.ndarray,
        weights_TK: np.ndarray,
        holder_TK: np.ndarray,
        messages: Sequence[RowMessage],
    ) -> PackedRows:
        """Fill every rank's message, with no rows where it gets none."""
        here_RTK = holder_TK == self._ranks_R11
        goes_RT = here_RTK.any(2)
        rank_S, row_S = goes_RT.nonzero()
        ends = rank_S.searchsorted(self._ends_R).tolist()
        ids_SK = np.where(here_RTK, ids_TK, -1)[rank_S, row_S]
        weights_SK = weights_TK.take(row_S, 0)
        counts, start = [], 0
        for message, end in zip(messages, ends, strict=True):
            counts.append(end - start)
            message.set_count(end - start)
            parts = message.parts(end - start)
            parts.host_ids_NK[:] = ids_SK[start:end]
            parts.host_weights_NK[:] = weights_SK[start:end]
            rows_N = torch.from_numpy(row_S[start:end]).to(x_TD.device)
            torch.index_select(x_TD, 0, rows_N, out=parts.rows_ND)
            start = end
        places_JT = np.full((self._most_ranks, len(ids_TK)), self._nothing, np.int64)
        places_JT[goes_RT.cumsum(0)[rank_S, row_S] - 1, row_S] = np.arange(len(row_S))
        return PackedRows(counts, torch.from_numpy(places_JT))
