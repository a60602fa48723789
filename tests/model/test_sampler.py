from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from model.counter_random import uniforms
from model.sampler import Sampled, SampleRow, sample
from model.sampling_params import SamplingParams
from tests.model.sampling_rules import (
    GREEDY,
    PLAIN,
    check_logprobs,
    check_token,
    draw,
    is_drawn,
    probabilities_by_rules,
    row_of,
)

# Values and penalties are multiples of powers of two, so that fp32 and float64 agree on what ties.
VOCAB = 24
eighths = st.integers(-64, 64).map(lambda n: n / 8)
token_ids = st.lists(st.integers(0, VOCAB - 1), max_size=12)
params_strategy = st.builds(
    SamplingParams,
    max_tokens=st.just(1),
    seed=st.integers(-(2**63), 2**63 - 1),
    temperature=st.sampled_from([0.0, 0.2, 0.7, 1.0, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 1.0, 0.95, 0.5, 0.1, 1e-9]) | st.floats(0.001, 1.0),
    top_k=st.sampled_from([0, 0, 1, 3, 10, VOCAB, VOCAB + 5, 1000]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.0]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5, -1.25, 2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.25, -0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 2.0, 0.5]),
    logit_bias=st.just(())
    | st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, -1.5, 2.25, 100.0]))
    .map(lambda bias: tuple(bias.items())),
    logprobs=st.sampled_from([None, None, 0, 1, 5, VOCAB, VOCAB + 9]),
)  # fmt: skip
cases = st.lists(
    st.tuples(
        st.lists(st.just(-math.inf) | eighths | eighths, min_size=VOCAB, max_size=VOCAB),
        st.builds(SampleRow, params_strategy, st.integers(0, 2**31), token_ids, token_ids),
    ).filter(lambda case: max(case[0]) > -math.inf),
    min_size=1,
    max_size=10,
)


@settings(max_examples=120, deadline=None)
@given(cases)
def test_every_row_follows_the_rules(batch: list[tuple[list[float], SampleRow]]) -> None:
    logits = torch.tensor([values for values, _ in batch])
    rows = [row for _, row in batch]
    sampled = sample(logits, rows)
    assert len(sampled.token_ids) == len(sampled.logprobs) == len(rows)
    for i, (token_id, row) in enumerate(zip(sampled.token_ids, rows)):
        check_token(token_id, logits[i], row)
        raw = logits[i].double().numpy()
        check_logprobs(sampled.logprobs[i], token_id, raw, row.params.logprobs)


@settings(max_examples=60, deadline=None)
@given(cases, st.randoms(use_true_random=False))
def test_a_row_alone_equals_the_row_in_a_batch(
    batch: list[tuple[list[float], SampleRow]], random: object
) -> None:
    logits = torch.tensor([values for values, _ in batch])
    together = sample(logits, [row for _, row in batch])
    for i, (_, row) in enumerate(batch):
        alone = sample(logits[i : i + 1], [row])
        assert alone == Sampled([together.token_ids[i]], [together.logprobs[i]])


def mixed_rows(count: int) -> list[SampleRow]:
    rng = np.random.default_rng(3)
    kinds = [
        PLAIN,
        dataclasses.replace(PLAIN, temperature=0.0),
        dataclasses.replace(PLAIN, top_p=0.9),
        dataclasses.replace(PLAIN, top_p=0.999, temperature=1.5),
        dataclasses.replace(PLAIN, top_k=50, top_p=0.8),
        dataclasses.replace(PLAIN, top_k=400),
        dataclasses.replace(PLAIN, min_p=0.02, logprobs=5),
        dataclasses.replace(PLAIN, repetition_penalty=1.3, frequency_penalty=0.3, top_p=0.7),
        dataclasses.replace(PLAIN, presence_penalty=1.0, temperature=0.0, logprobs=0),
    ]
    return [
        SampleRow(
            dataclasses.replace(kinds[i % len(kinds)], seed=i),
            position=100 + i,
            prompt_token_ids=rng.integers(0, 32000, 40).tolist(),
            output_token_ids=rng.integers(0, 32000, 20).tolist(),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_full_vocabulary_alone_in_parts_and_in_any_order(dtype: torch.dtype) -> None:
    logits = (torch.randn(27, 32000, generator=torch.Generator().manual_seed(5)) * 3).to(dtype)
    rows = mixed_rows(27)
    together = sample(logits, rows)
    rng = np.random.default_rng(0)
    parts = [[i] for i in range(27)] + [
        rng.permutation(27)[: rng.integers(2, 27)] for _ in range(3)
    ]
    for part in parts:
        sampled = sample(logits[part], [rows[i] for i in part])
        assert sampled.token_ids == [together.token_ids[i] for i in part]
        assert sampled.logprobs == [together.logprobs[i] for i in part]
    for i, row in enumerate(rows):
        if row.params.repetition_penalty == 1.0:  # 1.3 rounds differently in float64
            check_token(together.token_ids[i], logits[i].float(), row)


def chi_square_bound(freedom: int) -> float:
    """Exceeded by a true chi-square variable once in 3.5 million (5 sigma; Wilson-Hilferty)."""
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + 5 * math.sqrt(spread)) ** 3)


@pytest.mark.parametrize(
    "params",
    [
        PLAIN,
        dataclasses.replace(PLAIN, temperature=0.6),
        dataclasses.replace(PLAIN, temperature=1.4, top_p=0.9),
        dataclasses.replace(PLAIN, top_k=12, min_p=0.01),
    ],
)
@pytest.mark.parametrize("along", ["seeds", "positions"])
def test_draws_follow_the_distribution(params: SamplingParams, along: str) -> None:
    # 24000 draws; a correct sampler fails each of the eight cases with probability 3e-7, at most.
    count, vocab_size = 24_000, 40
    logits = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(1)) * 1.5
    rows = [
        row_of(dataclasses.replace(params, seed=i), 17)
        if along == "seeds"
        else row_of(dataclasses.replace(params, seed=17), i)
        for i in range(count)
    ]
    drawn = sample(logits.expand(count, -1), rows).token_ids
    expected = probabilities_by_rules(logits[0].double().numpy(), params) * count
    seen = np.bincount(drawn, minlength=vocab_size)
    assert seen[expected == 0].sum() == 0
    common = expected >= 5  # rare tokens go into one cell, as the chi-square law asks
    cells = [*zip(seen[common], expected[common]), (seen[~common].sum(), expected[~common].sum())]
    cells = [(have, want) for have, want in cells if want > 0]
    statistic = sum((have - want) ** 2 / want for have, want in cells)
    assert statistic < chi_square_bound(len(cells) - 1)


def test_a_seed_repeats_itself_and_another_does_not() -> None:
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(2)).expand(50, -1)
    rows = [row_of(dataclasses.replace(PLAIN, seed=9), position) for position in range(50)]
    others = [row_of(dataclasses.replace(PLAIN, seed=10), position) for position in range(50)]
    first = sample(logits, rows)
    assert sample(logits, rows) == first
    assert len(set(first.token_ids)) > 25
    assert sum(a == b for a, b in zip(first.token_ids, sample(logits, others).token_ids)) < 10


def test_repetition_penalty_equals_transformers() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(64, 300, generator=generator) * 2
    ids = torch.randint(0, 300, (64, 40), generator=generator)
    params = dataclasses.replace(PLAIN, repetition_penalty=1.7)
    rows = [
        row_of(dataclasses.replace(params, seed=i), 40, ids[i, :25].tolist(), ids[i, 25:].tolist())
        for i in range(64)
    ]
    scores = RepetitionPenaltyLogitsProcessor(1.7)(torch.LongTensor(ids), torch.FloatTensor(logits))
    drawn = sample(logits, rows).token_ids
    for i, uniform in enumerate(uniforms(range(64), [40] * 64)):
        assert is_drawn(drawn[i], scores[i].double().softmax(-1).numpy(), uniform)
    greedy = [
        dataclasses.replace(row, params=dataclasses.replace(row.params, temperature=0.0))
        for row in rows
    ]
    assert sample(logits, greedy).token_ids == scores.argmax(-1).tolist()
    assert scores.argmax(-1).tolist() != logits.argmax(-1).tolist()


def test_penalties_read_the_right_tokens_in_the_right_order() -> None:
    logits = [[4.0, 3.5, 3.0, 0.0]]
    greedy = GREEDY
    assert draw(logits, row_of(greedy, 2, [0], [0])).token_ids == [0]
    presence = dataclasses.replace(greedy, presence_penalty=0.75)
    assert draw(logits, row_of(presence, 2, [0, 0], [3])).token_ids == [0]  # not the prompt's
    assert draw(logits, row_of(presence, 2, [], [0, 0])).token_ids == [1]  # once: 3.25
    frequency = dataclasses.replace(greedy, frequency_penalty=0.4)
    assert draw(logits, row_of(frequency, 2, [], [0])).token_ids == [0]  # 3.6
    assert draw(logits, row_of(frequency, 2, [], [0, 0])).token_ids == [1]  # 3.2
    # Bias, then repetition, then presence: (4 - 5) * 2 - 1 = -3. The other orders leave it above.
    params = dataclasses.replace(
        greedy, logit_bias=((0, -5.0),), repetition_penalty=2.0, presence_penalty=1.0
    )
    assert draw([[4.0, -2.9]], row_of(params, 2, [], [0])).token_ids == [1]
    assert draw([[4.0, -3.1]], row_of(params, 2, [], [0])).token_ids == [0]


def test_logprobs_are_those_of_the_raw_logits() -> None:
    params = dataclasses.replace(GREEDY, logit_bias=((2, 50.0),), logprobs=2)
    sampled = draw([[1.0, 2.0, 0.0]], row_of(params))
    assert sampled.token_ids == [2]
    check_logprobs(sampled.logprobs[0], 2, np.array([1.0, 2.0, 0.0]), 2)


@pytest.mark.parametrize("asked", [[5] * 4, [0, None, 3, 20]])
def test_logprobs_equal_torch_with_ties_by_id(asked: list[int | None]) -> None:
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(6)).bfloat16()
    rows = [row_of(dataclasses.replace(PLAIN, seed=i, logprobs=n)) for i, n in enumerate(asked)]
    sampled = sample(logits, rows)
    reference = logits.double().log_softmax(-1)
    for got, n, token_id, row in zip(sampled.logprobs, asked, sampled.token_ids, reference):
        check_logprobs(got, token_id, row.numpy(), n)
