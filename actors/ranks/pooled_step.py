"""Which rows of a step the pooled sequences need, and what becomes of them."""

from __future__ import annotations

import numpy as np
import torch

from actors.scheduling.sequence import StepPlan
from model.pooling import MeanSoFar, Pooler
from model.step_batch import StepBatch


def wanted_rows(plan: StepPlan, batch: StepBatch) -> list[range]:
    """Of each prefill: all its rows for a mean, else the last one where it ends the prompt."""
    rows = []
    for chunk, laid in zip(plan.prefills, batch.prefills, strict=True):
        end = laid.row + laid.num_rows
        every = chunk.sequence.request.pooling == "mean"
        rows.append(range(laid.row if every else end - chunk.samples, end))
    return rows


class PooledStep:
    """Adds up the rows of one engine's pooled sequences, chunk by chunk."""

    def __init__(self, pooler: Pooler) -> None:
        self._pooler = pooler
        self._means: dict[str, MeanSoFar] = {}  # by request id, of those whose prompt has begun

    def forget(self, request_id: str) -> None:
        """It was aborted."""
        self._means.pop(request_id, None)

    def take(
        self, plan: StepPlan, rows: list[range], hidden_RD: torch.Tensor
    ) -> list[bytes | None]:
        """Take in a step's `wanted_rows`: a vector for each sampling chunk, None if not finite.

        A prompt that begins anew, after a preemption, adds up anew.
        """
        pooled, first = [], 0
        for chunk, wanted in zip(plan.prefills, rows, strict=True):
            rows_TD = hidden_RD[first : first + len(wanted)]
            first += len(wanted)
            sequence = chunk.sequence
            if sequence.request.pooling == "last":
                if chunk.samples:
                    pooled.append(rows_TD[-1])
                continue
            before = self._means.pop(sequence.request_id, None)
            so_far = MeanSoFar.of(rows_TD, before if chunk.start else None)
            if chunk.samples:
                pooled.append(so_far.mean_D)
            elif not sequence.ended:
                self._means[sequence.request_id] = so_far
        return [_plain(self._pooler(pooled_D)) for pooled_D in pooled]


def _plain(vector: torch.Tensor) -> bytes | None:
    values = vector.cpu().numpy().astype("<f4")
    return values.tobytes() if np.isfinite(values).all() else None
