"""Probabilities as integer weights, and the filters that take tokens out of the draw.

A row's token must not depend on what else is in the batch, bit for bit. Floating-point sums would
break that, since kernels add in an order that changes with the shape. So a row's probabilities
become 64-bit integers, relative to its best token, whose sums are exact in any order; all else is
elementwise. A filter only needs the value at which a row is cut, never the order of the ids, so
only values are sorted, by whichever method is fastest.

Shape suffixes: R the rows at hand, V vocab, C the largest values of a row.
"""

from __future__ import annotations

import numpy as np
import torch

from model.sampling_params import SamplingParams

_TOPK_AT_MOST = 128  # beyond this many values, sorting the whole row is faster than topk
_NUCLEUS_HEAD = 1024  # nearly every nucleus lies within so many tokens


def full_weight(vocab_size: int) -> int:
    """What the best token weighs: the largest power of two that keeps row sums below 2 ** 62."""
    return 1 << (62 - vocab_size.bit_length())


def weigh(
    logits: torch.Tensor, best_R1: torch.Tensor, temperature_R1: torch.Tensor, vocab_size: int
) -> torch.Tensor:
    """int64 weights proportional to the logits' probabilities, in the logits' shape."""
    shares = ((logits - best_R1) / temperature_R1).exp_()
    return shares.mul_(full_weight(vocab_size)).long()


def pick(weights_RV: torch.Tensor, draws_R: torch.Tensor) -> torch.Tensor:
    """Inverse CDF in id order: the id at share `draws_R` of each row's total, (R,).

    Draws are float64 in [0, 1). A row must hold a positive weight.
    """
    cumulative_RV = weights_RV.cumsum(dim=-1)
    # A draw is at most 1 - 2 ** -53, so even a rounded product stays below the total.
    target_R1 = (draws_R[:, None] * cumulative_RV[:, -1:].double()).long()
    # The first id whose cumulative weight exceeds the target, so always one that weighs something.
    return torch.searchsorted(cumulative_RV, target_R1, right=True)[:, 0]


def kth_largest(logits_RV: torch.Tensor, k: list[int]) -> torch.Tensor:
    """Each row's k-th largest logit, k from 1 to V, (R, 1)."""
    largest_RC = _largest(logits_RV, max(k))
    k_R1 = torch.tensor(k, device=logits_RV.device)[:, None]
    return largest_RC.gather(1, largest_RC.shape[1] - k_R1)


def keep_min_p(weights_RV: torch.Tensor, min_p: list[float]) -> torch.Tensor:
    """Zeroes what weighs less than min_p of the row's best."""
    full = full_weight(weights_RV.shape[1])
    least_R1 = torch.tensor([int(p * full) for p in min_p], device=weights_RV.device)[:, None]
    return weights_RV.mul_(weights_RV >= least_R1)


def keep_top_k(weights_RV: torch.Tensor, logits_RV: torch.Tensor, top_k: list[int]) -> torch.Tensor:
    """Zeroes what lies below the row's k-th largest logit."""
    return weights_RV.mul_(logits_RV >= kth_largest(logits_RV, top_k))


def keep_top_p(
    weights_RV: torch.Tensor,
    logits_RV: torch.Tensor,
    best_R1: torch.Tensor,
    temperature_R1: torch.Tensor,
    params: list[SamplingParams],
) -> torch.Tensor:
    """Keeps the fewest tokens, by weight and then id, that together reach top_p of the total.

    `weights_RV` may have been filtered already, by value: what is left is a head of the row in
    descending order, so that the unfiltered weights of `largest_RC` count as well.
    """
    vocab_size = logits_RV.shape[1]
    device = logits_RV.device
    top_p_R1 = torch.tensor([p.top_p for p in params], device=device, dtype=torch.float64)[:, None]
    total_R1 = weights_RV.sum(dim=-1, keepdim=True)
    needed_R1 = (top_p_R1 * total_R1.double()).ceil().long()
    needed_R1 = torch.minimum(needed_R1.clamp_(min=1), total_R1)

    largest_RC = _largest(logits_RV, max(min(p.top_k or vocab_size, vocab_size) for p in params))
    for width in (_NUCLEUS_HEAD, vocab_size):
        head_RC = largest_RC[:, -width:].flip(-1)
        head_weights_RC = weigh(head_RC, best_R1, temperature_R1, vocab_size)
        cumulative_RC = head_weights_RC.cumsum(dim=-1)
        if width >= largest_RC.shape[1] or bool((cumulative_RC[:, -1:] >= needed_R1).all()):
            break

    # The last token kept has the value `edge`; of those that share it, the first `room` ids stay.
    # Where top_k keeps ties with the k-th, the last may lie beyond the head: hence the clamp, and
    # a division where the index would do.
    at_R1 = torch.searchsorted(cumulative_RC, needed_R1).clamp_(max=head_RC.shape[1] - 1)
    edge_R1 = head_RC.gather(1, at_R1)
    edge_weight_R1 = head_weights_RC.gather(1, at_R1).clamp_(min=1)
    above_R1 = (head_weights_RC * (head_RC > edge_R1)).sum(dim=-1, keepdim=True)
    room_R1 = (needed_R1 - above_R1 + edge_weight_R1 - 1) // edge_weight_R1

    weights_RV.mul_(logits_RV >= edge_R1)
    surplus_R1 = weights_RV.sum(dim=-1, keepdim=True) - above_R1 - room_R1 * edge_weight_R1
    cut = (surplus_R1[:, 0] > 0).nonzero()[:, 0]
    if len(cut):
        tied_RV = logits_RV[cut] == edge_R1[cut]
        tied_RV &= tied_RV.cumsum(dim=-1) > room_R1[cut]
        weights_RV[cut] = weights_RV[cut].masked_fill_(tied_RV, 0)
    return weights_RV


def _largest(logits_RV: torch.Tensor, count: int) -> torch.Tensor:
    """Each row's `count` largest logits in ascending order, (R, C)."""
    if count <= _TOPK_AT_MOST:
        return logits_RV.topk(count, dim=-1).values.flip(-1)
    if logits_RV.device.type == "cpu":  # numpy's is vectorised: 90 us instead of 2200 for 32000
        return torch.from_numpy(np.sort(logits_RV.numpy(), axis=-1)[:, -count:])
    return logits_RV.sort(dim=-1).values[:, -count:]
