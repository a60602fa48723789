"""Sampling at its edges: no rows, ties, extreme settings, rows that cannot be sampled, dtypes."""

from __future__ import annotations

import dataclasses
import math
from array import array

import pytest
import torch

from model.sampler import NonFiniteLogits, Sampled, sample
from model.sampling_params import SamplingParams, TokenLogprobs
from tests.model.sampling_rules import GREEDY, PLAIN, draw, row_of


def test_no_rows_and_one_token() -> None:
    assert sample(torch.empty(0, 8), []) == Sampled([], [])
    for params in (PLAIN, GREEDY, dataclasses.replace(PLAIN, top_p=0.1, top_k=1, min_p=1.0)):
        answer = draw([[-3.0]], row_of(dataclasses.replace(params, logprobs=1)))
        assert answer == Sampled([0], [TokenLogprobs(0.0, ((0, 0.0),))])


def test_equal_logits_and_negative_zero() -> None:
    assert draw([[-0.0, 0.0], [0.0, -0.0]], row_of(GREEDY), row_of(GREEDY)).token_ids == [0, 0]
    assert draw([[1.0, 7.0, 7.0, 7.0]], row_of(GREEDY)).token_ids == [1]
    only_best = dataclasses.replace(PLAIN, top_p=1e-9)
    for seed in range(20):
        row = row_of(dataclasses.replace(only_best, seed=seed))
        assert draw([[-0.0, 0.0], [0.0, -0.0]], row, row).token_ids == [0, 0]
    tied = [row_of(dataclasses.replace(PLAIN, seed=seed, top_k=1)) for seed in range(64)]
    drawn = sample(torch.tensor([[-1.0, -0.0, 0.0]]).expand(64, -1), tied).token_ids
    assert set(drawn) == {1, 2}


@pytest.mark.parametrize(
    "params",
    [
        dataclasses.replace(PLAIN, temperature=1e-60),
        dataclasses.replace(PLAIN, temperature=1e-6),
        dataclasses.replace(PLAIN, top_k=1),
        dataclasses.replace(PLAIN, top_p=1e-12),
        dataclasses.replace(PLAIN, min_p=1.0),
    ],
)
def test_extreme_settings_are_greedy(params: SamplingParams) -> None:
    logits = torch.randn(20, 3000, generator=torch.Generator().manual_seed(8)) * 10
    rows = [row_of(dataclasses.replace(params, seed=i), i) for i in range(20)]
    assert sample(logits, rows).token_ids == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    "params",
    [
        PLAIN,
        dataclasses.replace(PLAIN, top_p=0.999999),
        dataclasses.replace(PLAIN, top_k=30),
        dataclasses.replace(PLAIN, temperature=50.0),
    ],
)
def test_masked_tokens_are_never_drawn(params: SamplingParams) -> None:
    logits = torch.full((200, 50), -math.inf)
    logits[:, 7] = -40.0
    logits[:, 31] = -41.0
    rows = [row_of(dataclasses.replace(params, seed=i)) for i in range(200)]
    assert set(sample(logits, rows).token_ids) == {7, 31}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("params", [GREEDY, PLAIN, dataclasses.replace(PLAIN, top_p=0.5, top_k=9)])
def test_a_row_without_a_finite_best_is_named(bad: float, params: SamplingParams) -> None:
    logits = torch.randn(4, 200, generator=torch.Generator().manual_seed(9))
    logits[2] = bad if bad == -math.inf else logits[2]
    logits[2, 150] = bad
    with pytest.raises(FloatingPointError, match=r"rows \[2\]"):
        sample(logits, [row_of(params)] * 4)
    assert len(sample(logits[[0, 1, 3]], [row_of(params)] * 3).token_ids) == 3


@pytest.mark.parametrize("token_id", [-1, 4, 10**9])
def test_an_id_outside_the_vocabulary_is_refused(token_id: int) -> None:
    rows = [
        row_of(dataclasses.replace(GREEDY, logit_bias=((token_id, 1.0),))),
        row_of(dataclasses.replace(GREEDY, repetition_penalty=1.1), 1, [token_id]),
        row_of(dataclasses.replace(GREEDY, presence_penalty=0.1), 1, [], [token_id]),
    ]
    for row in rows:
        with pytest.raises(ValueError, match=r"\[0, 4\)"):
            draw([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]], row_of(GREEDY), row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_callers_logits_stay_as_they_are(dtype: torch.dtype) -> None:
    with torch.inference_mode():
        stored = torch.randn(32, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
        logits = stored.T  # not contiguous, and a plain clone of it is not either
    params = SamplingParams(
        max_tokens=1, seed=3, top_p=0.8, top_k=20, min_p=0.01, presence_penalty=1.0,
        frequency_penalty=1.0, repetition_penalty=2.0, logit_bias=((0, 5.0),), logprobs=2,
    )  # fmt: skip
    rows = [row_of(params, i, [1, 2], [3, 3]) for i in range(9)]
    before = stored.clone()
    sampled = sample(logits, rows)
    assert torch.equal(stored, before)
    assert sampled == sample(logits.float().contiguous(), rows)


def test_arrays_and_lists_of_ids_are_the_same() -> None:
    logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
    best, second = logits[0].topk(2).indices.tolist()
    params = dataclasses.replace(GREEDY, repetition_penalty=50.0, presence_penalty=1.0)
    for prompt, output in (([best], [3]), ([3], [best])):
        from_lists = sample(logits, [row_of(params, 2, prompt, output)])
        from_arrays = sample(logits, [row_of(params, 2, array("q", prompt), array("q", output))])
        assert from_lists == from_arrays == Sampled([second], [None])


def test_greedy_rows_in_bfloat16_are_those_in_float32() -> None:
    logits = torch.randn(9, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows = [row_of(GREEDY)] * 9
    assert sample(logits, rows) == sample(logits.float(), rows)
    one_asks_more = [*rows[:8], row_of(dataclasses.replace(GREEDY, logprobs=0))]
    assert sample(logits, one_asks_more).token_ids == sample(logits, rows).token_ids
    logits[2, 3], logits[5, 999] = math.nan, math.inf
    for dtype in (torch.bfloat16, torch.float32):
        with pytest.raises(NonFiniteLogits) as raised:
            sample(logits.to(dtype), rows)
        assert raised.value.rows == [2, 5]
