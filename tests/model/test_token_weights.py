from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.sampling_params import SamplingParams
from model.token_weights import (
    full_weight,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    kth_largest,
    pick,
    weigh,
)

IDS = torch.LongTensor([[0]])  # the warpers ignore it


def random_logits(rows: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 2


def weights_of(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    best = logits.amax(-1, keepdim=True)
    return weigh(logits, best, torch.full_like(best, temperature), logits.shape[1])


def nucleus(
    logits: torch.Tensor,
    top_p: list[float],
    temperature: float = 1.0,
    top_k: int = 0,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    params = [
        SamplingParams(max_tokens=1, seed=0, top_p=p, top_k=top_k, temperature=temperature)
        for p in top_p
    ]
    best = logits.amax(-1, keepdim=True)
    weights = weights_of(logits, temperature) if weights is None else weights
    heat = torch.full_like(best, temperature)
    return keep_top_p(weights, logits, best, heat, params) > 0


def nucleus_reference(row: torch.Tensor, top_p: float) -> np.ndarray[tuple[int], np.dtype[np.bool]]:
    """Row by row in float64: descending by logit, then by id, until the sum reaches top_p."""
    logits = row.double().numpy()
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    kept, total = np.zeros(len(logits), dtype=bool), 0.0
    for i in sorted(range(len(logits)), key=lambda i: (-logits[i], i)):
        kept[i] = True
        total += shares[i]
        if total >= top_p:
            break
    return kept


def clear_top_p(logits: torch.Tensor, count: int) -> list[float]:
    """For each row a top_p that `count` tokens reach, half a share from either side."""
    cumulative = logits.double().softmax(-1).sort(descending=True).values.cumsum(-1)
    before = cumulative[:, count - 2] if count > 1 else torch.zeros(len(logits))
    return [float(p) for p in (before + cumulative[:, count - 1]) / 2]


@pytest.mark.parametrize("vocab_size", [1, 2, 7, 1000, 32000, 131072])
def test_weights_are_proportional_to_probabilities_and_never_overflow(vocab_size: int) -> None:
    logits = random_logits(2, vocab_size)
    weights = weights_of(logits, temperature=0.7)
    assert weights.max() == full_weight(vocab_size)
    shares = weights.double() / weights.double().sum(-1, keepdim=True)
    assert torch.allclose(shares, (logits.double() / 0.7).softmax(-1), rtol=1e-5, atol=1e-12)
    flat = weights_of(torch.zeros(1, vocab_size))  # the largest possible sum
    assert 0 < int(flat.sum()) == vocab_size * full_weight(vocab_size) < 2**62
    assert int(flat.cumsum(-1).min()) > 0


def test_pick_inverts_the_cumulative_sum_and_skips_what_weighs_nothing() -> None:
    weights = torch.tensor([[0, 5, 0, 3, 2, 0]])
    shares = [0.0, 0.49, 0.5, 0.79, 0.8, 1.0 - 2.0**-53]
    ids = pick(weights.expand(6, 6), torch.tensor(shares, dtype=torch.float64))
    assert ids.tolist() == [1, 1, 3, 3, 4, 4]


def test_the_largest_draw_stays_below_any_total() -> None:
    # Totals around powers of two and halfway between doubles, where a product is rounded up most.
    totals = [2**power + offset for power in (0, 1, 52, 53, 54, 60, 61) for offset in range(2048)]
    totals += [2**62 - offset for offset in range(1, 2048)]
    draws = torch.full((len(totals),), 1.0 - 2.0**-53, dtype=torch.float64)
    weights = torch.tensor(totals)[:, None]
    assert pick(weights, draws).tolist() == [0] * len(totals)


@pytest.mark.parametrize("k", [1, 5, 50, 127, 128, 129, 999, 1000])
def test_kth_largest(k: int) -> None:
    logits = random_logits(4, 1000).bfloat16().float()  # with many ties
    expected = [sorted(row, reverse=True)[k - 1] for row in logits.tolist()]
    assert kth_largest(logits, [k] * 4)[:, 0].tolist() == expected
    assert kth_largest(logits, [k, 1, k, 1000])[3, 0] == logits[3].min()


@pytest.mark.parametrize("k", [1, 2, 40, 128, 500, 999])
@pytest.mark.parametrize("ties", [False, True])
def test_top_k_keeps_what_transformers_keeps(k: int, ties: bool) -> None:
    logits = random_logits(6, 1000)
    logits = logits.bfloat16().float() if ties else logits
    kept = keep_top_k(weights_of(logits), logits, [k] * 6) > 0
    assert torch.equal(kept, TopKLogitsWarper(k)(IDS, logits).isfinite())
    assert kept.sum() >= 6 * k


@pytest.mark.parametrize("count", [1, 2, 3, 17, 150])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_top_p_keeps_what_transformers_keeps(count: int, temperature: float) -> None:
    logits = random_logits(8, 200, seed=count)
    warmed = TemperatureLogitsWarper(temperature)(IDS, logits)
    top_p = clear_top_p(warmed, count)
    kept = nucleus(logits, top_p, temperature)
    for row, p, mine in zip(warmed, top_p, kept):
        assert torch.equal(mine, TopPLogitsWarper(p)(IDS, row[None])[0].isfinite())
        assert int(mine.sum()) == count


@pytest.mark.parametrize("count", [1, 2, 9, 100])
def test_min_p_keeps_what_transformers_keeps(count: int) -> None:
    logits = random_logits(8, 200, seed=count)
    ratios = (logits.double() - logits.double().amax(-1, keepdim=True)).exp()
    ratios = ratios.sort(descending=True).values
    min_p = [float(p) for p in (ratios[:, count - 1] + ratios[:, count]) / 2]
    kept = keep_min_p(weights_of(logits), min_p) > 0
    for row, p, mine in zip(logits, min_p, kept):
        assert torch.equal(mine, MinPLogitsWarper(p)(IDS, row[None])[0].isfinite())
        assert int(mine.sum()) == count


@pytest.mark.parametrize("k", [30, 129])
def test_the_chain_keeps_what_transformers_keeps(k: int) -> None:
    logits = random_logits(8, 400, seed=k)
    warmed = TemperatureLogitsWarper(0.8)(IDS, logits)
    filtered = TopKLogitsWarper(k)(IDS, MinPLogitsWarper(0.003)(IDS, warmed))
    top_p = clear_top_p(filtered, 20)
    weights = keep_top_k(keep_min_p(weights_of(logits, 0.8), [0.003] * 8), logits, [k] * 8)
    kept = nucleus(logits, top_p, 0.8, top_k=k, weights=weights)
    for row, p, mine in zip(filtered, top_p, kept):
        assert torch.equal(mine, TopPLogitsWarper(p)(IDS, row[None])[0].isfinite())
        assert int(mine.sum()) == 20


@pytest.mark.parametrize("count", [1000, 1024, 1025, 2500])
def test_a_nucleus_at_and_beyond_the_sorted_head(count: int) -> None:
    logits = torch.cat([random_logits(2, 4000) * 0.1, random_logits(2, 4000, seed=1)])
    top_p = clear_top_p(logits, count)
    kept = nucleus(logits, top_p)
    for row, p, mine in zip(logits, top_p, kept.numpy()):
        assert np.array_equal(mine, nucleus_reference(row, p))
        assert mine.sum() == count


def test_of_tied_tokens_the_lower_ids_enter_the_nucleus() -> None:
    logits = (random_logits(16, 3000) * 2).round() / 2  # some 30 values, each many times
    top_p = [0.03 + 0.06 * i for i in range(16)]
    for row, p, mine in zip(logits, top_p, nucleus(logits, top_p).numpy()):
        assert np.array_equal(mine, nucleus_reference(row, p))
    flat = nucleus(torch.zeros(3, 4096), [0.25, 0.5, 0.75])
    assert flat.sum(-1).tolist() == [1024, 2048, 3072]
    assert flat[:, :1024].all()


def test_top_p_counts_the_ties_that_top_k_kept_beyond_k() -> None:
    logits = torch.tensor([[0.0, 5.0] + [3.0] * 10 + [1.0]])
    weights = keep_top_k(weights_of(logits), logits, [4])
    assert (weights > 0).sum() == 11
    share = 1 / (np.exp(2.0) + 10)
    for kept_ties in range(1, 11):
        p = (np.exp(2.0) + kept_ties - 0.5) * share
        kept = nucleus(logits, [p], top_k=4, weights=weights.clone())
        assert kept[0].nonzero()[:, 0].tolist() == list(range(1, 2 + kept_ties))
