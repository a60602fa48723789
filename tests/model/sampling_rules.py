"""What sampling must give, worked out apart from the sampler, and the rows it is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from model.counter_random import uniforms
from model.sampler import Sampled, SampleRow, sample
from model.sampling_params import SamplingParams, TokenLogprobs

Floats = npt.NDArray[np.float64]
SLACK = 1e-6  # of probability: what fp32 logits, divided and exponentiated, may be off
GREEDY = SamplingParams(max_tokens=1, seed=0, temperature=0.0)
PLAIN = SamplingParams(max_tokens=1, seed=0)


def row_of(
    params: SamplingParams,
    position: int = 0,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
) -> SampleRow:
    return SampleRow(params, position, prompt, output)


def draw(logits: list[list[float]] | torch.Tensor, *rows: SampleRow) -> Sampled:
    return sample(torch.as_tensor(logits), rows)


# The oracle: one row at a time, float64, one Python statement per rule.


def adjusted_by_rules(logits: Floats, row: SampleRow) -> Floats:
    logits, params = logits.copy(), row.params
    for token_id, bias in params.logit_bias:
        logits[token_id] += bias
    for token_id in {*row.prompt_token_ids, *row.output_token_ids}:
        factor = params.repetition_penalty
        logits[token_id] *= 1 / factor if logits[token_id] > 0 else factor
    for token_id in row.output_token_ids:
        logits[token_id] -= params.frequency_penalty
    for token_id in set(row.output_token_ids):
        logits[token_id] -= params.presence_penalty
    return logits


def probabilities_by_rules(adjusted: Floats, params: SamplingParams, shift: float = 0.0) -> Floats:
    """`shift` moves the thresholds of min_p and top_p a little, to where rounding might."""
    order = np.argsort(-adjusted, kind="stable")
    shares: Floats = np.exp((adjusted - adjusted.max()) / params.temperature)
    kept = [i for i in order if shares[i] >= min(params.min_p + shift, 1.0)]
    if params.top_k:
        kth = adjusted[order[min(params.top_k, len(order)) - 1]]
        kept = [i for i in kept if adjusted[i] >= kth]
    if params.top_p < 1.0:
        mass = np.cumsum(shares[kept]) / np.sum(shares[kept])
        kept = kept[
            : 1 + sum(mass < params.top_p + shift)
        ]  # all before the sum is reached, and one
    probabilities = np.zeros(len(shares))
    probabilities[kept] = shares[kept] / shares[kept].sum()
    return probabilities


def is_drawn(token_id: int, probabilities: Floats, uniform: float) -> bool:
    """Whether the inverse CDF in id order gives this token at this uniform."""
    below = probabilities[:token_id].sum()
    above = below + probabilities[token_id]
    return bool(probabilities[token_id] > 0 and below - SLACK <= uniform <= above + SLACK)


def check_token(token_id: int, logits: torch.Tensor, row: SampleRow) -> None:
    adjusted = adjusted_by_rules(logits.double().numpy(), row)
    if row.params.temperature == 0.0:
        assert token_id == int(adjusted.argmax())
        return
    (uniform,) = uniforms([row.params.seed], [row.position])
    variants = [probabilities_by_rules(adjusted, row.params, s) for s in (0.0, -SLACK, SLACK)]
    assert any(is_drawn(token_id, variant, uniform) for variant in variants)


def check_logprobs(got: TokenLogprobs | None, token_id: int, logits: Floats, n: int | None) -> None:
    if n is None:
        assert got is None
        return
    assert got is not None
    expected = logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())
    assert got.logprob == pytest.approx(expected[token_id], abs=1e-6)
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:n]
    assert [i for i, _ in got.top] == order
    assert [value for _, value in got.top] == pytest.approx(list(expected[order]), abs=1e-6)
