"""From the rows of a text, as they leave the last norm, to the one vector it is asked for.

Shape suffixes: T rows, D hidden, N labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from model.head import ModelHead


@dataclass(frozen=True, slots=True)
class MeanSoFar:
    """The rows of a text that have been computed: their sum, in float32, and their number."""

    sum_D: torch.Tensor
    num_rows: int

    @classmethod
    def of(cls, rows_TD: torch.Tensor, before: MeanSoFar | None) -> MeanSoFar:
        """These rows and those before them."""
        sum_D = rows_TD.sum(0, dtype=torch.float32)
        if before is None:
            return cls(sum_D, len(rows_TD))
        return cls(before.sum_D + sum_D, before.num_rows + len(rows_TD))

    @property
    def mean_D(self) -> torch.Tensor:
        """Of all rows."""
        return self.sum_D / self.num_rows


class Pooler:
    """What follows pooling: an embedding has length 1, a classifier's labels have probabilities."""

    def __init__(self, head: ModelHead, score_ND: torch.Tensor | None) -> None:
        self._head = head
        self._score_ND = score_ND

    def __call__(self, pooled_D: torch.Tensor) -> torch.Tensor:
        """Return the vector of a text, float32: [D], or [N] of a classifier.

        What a classifier gives follows its problem_type: softmax; sigmoid where several labels
        may be true, or there is only one; the logits themselves of a regression.
        """
        x_D = pooled_D.float()
        if self._score_ND is None:
            return F.normalize(x_D, dim=0)
        logits_N = F.linear(x_D, self._score_ND)
        problem = self._head.problem_type
        if problem == "regression":
            return logits_N
        if problem == "multi_label_classification" or len(logits_N) == 1:
            return logits_N.sigmoid()
        return logits_N.softmax(0)
