"""Turns a step's logits into one token per row, for all rows at once.

All of it is vectorised: a feature costs tensor operations over the rows that ask for it, and
nothing where no row does. What keeps a row's token apart from its batch is in token_weights.py.

Shape suffixes: S rows of the step, R the rows at hand, V vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model.counter_random import uniforms
from model.cpu_kernels.in_use import kernels_for
from model.sampling_params import SamplingParams, TokenLogprobs
from model.token_weights import (
    full_weight,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    kth_largest,
    pick,
    weigh,
)

_COLDEST = 1e-30  # a smaller temperature could underflow to 0 in fp32; this one is greedy already
_CPU_ROWS_AT_ONCE = 8  # their weights stay in a core's cache: twice as fast at 64 rows as in one go


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One sequence that is due a token. `position` is that token's index in the sequence.

    The ids are read only where a penalty asks for them, at a cost that grows with their number:
    arrays (array.array or numpy, of 64-bit ints) are read in place, lists are converted.
    """

    params: SamplingParams
    position: int
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Sampled:
    """The drawn tokens, one per row; logprobs only where the row's params ask for them."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]


class NonFiniteLogits(FloatingPointError):
    """No token can be drawn in `rows`, whose largest logit is NaN or infinite."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(f"the largest logit is not a finite number in rows {rows}")
        self.rows = rows


@torch.inference_mode()
def sample(logits_SV: torch.Tensor, rows: Sequence[SampleRow]) -> Sampled:
    """Draws one token per row. Logits of any float dtype, on any device, are left as they are.

    Order, as in vLLM: logit_bias, repetition, then presence and frequency penalty, temperature,
    min_p, top_k (ties with the k-th stay), top_p (of tied tokens the lower ids), draw. Greedy rows
    take the best logit (lowest id of equals) after the penalties. NonFiniteLogits if a row's
    largest logit is not finite; ValueError if a row names a token outside the vocabulary.
    """
    assert logits_SV.shape[0] == len(rows), (logits_SV.shape, len(rows))
    if not rows:
        return Sampled([], [])
    if all(row.params.takes_best for row in rows):
        kernels = kernels_for(logits_SV)
        if kernels is not None:  # in one pass over bf16: a quarter of the time at 1 to 32 rows
            best = kernels.best(logits_SV)
            return Sampled(_all_finite(best), [None] * len(rows))
    raw_SV = logits_SV.detach().float().contiguous()
    adjusted_SV = _adjust(raw_SV, rows)
    ids_S = _argmax(adjusted_SV)
    best_S1 = adjusted_SV.gather(1, ids_S[:, None])  # NaN and inf win an argmax, so they show here
    drawn = [i for i, row in enumerate(rows) if not row.params.greedy]
    at_once = _CPU_ROWS_AT_ONCE if raw_SV.device.type == "cpu" else len(rows)
    for start in range(0, len(drawn), at_once):
        some = drawn[start : start + at_once]
        part = _part(some, len(rows))
        ids_S[part] = _draw(adjusted_SV[part], best_S1[part], [rows[i] for i in some])
    token_ids = _all_finite(torch.where(best_S1[:, 0].isfinite(), ids_S, -1).tolist())
    logprobs: list[TokenLogprobs | None] = []
    for start in range(0, len(rows), at_once):
        span = slice(start, start + at_once)
        logprobs += _logprobs(raw_SV[span], rows[span], token_ids[span])
    return Sampled(token_ids, logprobs)


def _all_finite(token_ids: list[int]) -> list[int]:
    """Return them; NonFiniteLogits where some are -1."""
    if min(token_ids) < 0:
        raise NonFiniteLogits([i for i, token_id in enumerate(token_ids) if token_id < 0])
    return token_ids


def _argmax(logits_RV: torch.Tensor) -> torch.Tensor:
    """The lowest id of each row's largest logit, (R,)."""
    if logits_RV.device.type == "cpu":  # numpy's is vectorised: 2 us instead of 30 for 32000
        return torch.from_numpy(logits_RV.numpy().argmax(axis=-1))
    return logits_RV.argmax(dim=-1)


def _draw(
    logits_RV: torch.Tensor, best_R1: torch.Tensor, rows: Sequence[SampleRow]
) -> torch.Tensor:
    """One id per row by inverse CDF, in id order, over what the row's filters leave, (R,)."""
    device, vocab_size = logits_RV.device, logits_RV.shape[1]
    temperatures = [max(row.params.temperature, _COLDEST) for row in rows]
    temperature_R1 = torch.tensor(temperatures, device=device)[:, None]
    weights_RV = weigh(logits_RV, best_R1, temperature_R1, vocab_size)

    if some := [i for i, row in enumerate(rows) if row.params.min_p > 0.0]:
        part = _part(some, len(rows))
        min_p = [rows[i].params.min_p for i in some]
        weights_RV[part] = keep_min_p(weights_RV[part], min_p)
    if some := [i for i, row in enumerate(rows) if 0 < row.params.top_k < vocab_size]:
        part = _part(some, len(rows))
        top_k = [rows[i].params.top_k for i in some]
        weights_RV[part] = keep_top_k(weights_RV[part], logits_RV[part], top_k)
    if some := [i for i, row in enumerate(rows) if row.params.top_p < 1.0]:
        part = _part(some, len(rows))
        weights_RV[part] = keep_top_p(
            weights_RV[part],
            logits_RV[part],
            best_R1[part],
            temperature_R1[part],
            [rows[i].params for i in some],
        )

    draws_R = uniforms([row.params.seed for row in rows], [row.position for row in rows])
    return pick(weights_RV, torch.from_numpy(draws_R).to(device))


def _part(indices: list[int], count: int) -> list[int] | slice:
    """Picks rows of a tensor: without a copy where all `count` of them are meant."""
    return indices if len(indices) < count else slice(None)


def _adjust(raw_SV: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    """The logits with bias and penalties: a copy, or `raw_SV` itself where no row has any."""
    biased = [i for i, row in enumerate(rows) if row.params.logit_bias]
    repeating = [i for i, row in enumerate(rows) if row.params.repetition_penalty != 1.0]
    counted = [
        i
        for i, row in enumerate(rows)
        if row.params.presence_penalty != 0.0 or row.params.frequency_penalty != 0.0
    ]
    if not (biased or repeating or counted):
        return raw_SV
    vocab_size = raw_SV.shape[1]
    adjusted_SV = raw_SV.clone()
    flat = adjusted_SV.view(-1)  # entries are found by row * vocab_size + id
    if biased:
        named = [[token_id for token_id, _ in rows[i].params.logit_bias] for i in biased]
        bias = [bias for i in biased for _, bias in rows[i].params.logit_bias]
        keys = torch.from_numpy(_keys(biased, named, vocab_size)).to(flat.device)
        flat.index_add_(0, keys, torch.tensor(bias, device=flat.device))
    if repeating:
        seen = [rows[i].prompt_token_ids for i in repeating]
        seen += [rows[i].output_token_ids for i in repeating]
        entries = np.unique(_keys(repeating * 2, seen, vocab_size))
        penalty_S = np.array([row.params.repetition_penalty for row in rows], dtype=np.float32)
        penalty = torch.from_numpy(penalty_S[entries // vocab_size]).to(flat.device)
        keys = torch.from_numpy(entries).to(flat.device)
        old = flat[keys]
        flat[keys] = torch.where(old > 0, old / penalty, old * penalty)
    if counted:
        made = [rows[i].output_token_ids for i in counted]
        entries, counts = np.unique(_keys(counted, made, vocab_size), return_counts=True)
        owner = entries // vocab_size
        frequency_S = np.array([row.params.frequency_penalty for row in rows])
        presence_S = np.array([row.params.presence_penalty for row in rows])
        penalties = (frequency_S[owner] * counts + presence_S[owner]).astype(np.float32)
        keys = torch.from_numpy(entries).to(flat.device)
        flat[keys] -= torch.from_numpy(penalties).to(flat.device)
    return adjusted_SV


def _keys(
    owners: list[int], sequences: Sequence[Sequence[int]], vocab_size: int
) -> npt.NDArray[np.int64]:
    """Each id as owner * vocab_size + id, over all the owners' sequences."""
    ids = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise ValueError(f"token ids must lie in [0, {vocab_size})")
    lengths = [len(sequence) for sequence in sequences]
    return ids + np.repeat(np.array(owners, dtype=np.int64) * vocab_size, lengths)


def _logprobs(
    raw_SV: torch.Tensor, rows: Sequence[SampleRow], token_ids: list[int]
) -> list[TokenLogprobs | None]:
    """Each asking row's logprobs; -inf where a logit is. Of equal ones the lower id comes first."""
    answers: list[TokenLogprobs | None] = [None] * len(rows)
    asked = [
        (i, row.params.logprobs) for i, row in enumerate(rows) if row.params.logprobs is not None
    ]
    if not asked:
        return answers
    device, vocab_size = raw_SV.device, raw_SV.shape[1]
    logits_RV = raw_SV[_part([i for i, _ in asked], len(rows))]
    best_R1 = logits_RV.amax(dim=-1, keepdim=True)
    weights_RV = weigh(logits_RV, best_R1, torch.ones_like(best_R1), vocab_size)
    total_R1 = weights_RV.sum(dim=-1, keepdim=True)
    log_total_R1 = best_R1.double() + (total_R1.double() / full_weight(vocab_size)).log()
    chosen_R1 = torch.tensor([token_ids[i] for i, _ in asked], device=device)[:, None]
    chosen: list[float] = (logits_RV.gather(1, chosen_R1) - log_total_R1)[:, 0].tolist()

    top: list[tuple[tuple[int, float], ...]] = [()] * len(asked)
    if wanting := [j for j, (_, n) in enumerate(asked) if n]:
        part = _part(wanting, len(asked))
        counts = [min(asked[j][1], vocab_size) for j in wanting]
        # At least n candidates a row, more where some tie with the n-th; by row, then by id.
        at = (logits_RV[part] >= kth_largest(logits_RV[part], counts)).nonzero()
        scores = logits_RV[part][at[:, 0], at[:, 1]] - log_total_R1[part][at[:, 0], 0]
        (owners, ids), values = at.T.cpu().numpy(), scores.cpu().numpy()
        order = np.lexsort((-values, owners))  # stable: equals stay sorted by id
        best = list(zip(ids[order].tolist(), values[order].tolist()))
        starts = np.searchsorted(owners, np.arange(len(wanting))).tolist()
        for j, start, count in zip(wanting, starts, counts):
            top[j] = tuple(best[start : start + count])
    for (i, _), logprob, best_n in zip(asked, chosen, top):
        answers[i] = TokenLogprobs(logprob, best_n)
    return answers
