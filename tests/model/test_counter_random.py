from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.counter_random import uniforms

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def mix(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB % WORD
    return word ^ word >> 31


def reference(seed: int, position: int) -> float:
    state = mix((seed + GOLDEN) % WORD)
    return (mix((state + position * GOLDEN) % WORD) >> 11) / 2**53


def chi_square_bound(freedom: int) -> float:
    """Exceeded by a true chi-square variable once in 3.5 million (5 sigma; Wilson-Hilferty)."""
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + 5 * math.sqrt(spread)) ** 3)


def test_the_mixer_of_the_reference_gives_splitmix64s_published_outputs() -> None:
    assert [mix(n * GOLDEN % WORD) for n in (1, 2, 3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@given(st.lists(st.tuples(st.integers(), st.integers(0, 2**63 - 1)), min_size=1, max_size=20))
def test_equals_integer_arithmetic_for_any_seed_and_position(pairs: list[tuple[int, int]]) -> None:
    seeds, positions = [seed for seed, _ in pairs], [position for _, position in pairs]
    assert uniforms(seeds, positions).tolist() == [reference(*pair) for pair in pairs]


def test_stays_in_range_and_has_53_bits() -> None:
    draws = uniforms(range(100_000), [7] * 100_000)
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    scaled = draws * 2.0**53
    assert np.array_equal(scaled, np.floor(scaled))
    assert abs(float((scaled % 2).mean()) - 0.5) < 0.01  # the lowest bit is random too


def test_uniform_along_positions_along_seeds_and_in_pairs() -> None:
    count, bins = 64_000, 64
    along_positions = uniforms([12345] * count, range(count))
    along_seeds = uniforms(range(count), [0] * count)
    diagonal = uniforms(range(count), range(count, 0, -1))
    for draws in (along_positions, along_seeds, diagonal):
        seen = np.bincount((draws * bins).astype(int), minlength=bins)
        assert ((seen - count / bins) ** 2 / (count / bins)).sum() < chi_square_bound(bins - 1)
        cells = (draws[::2] * 8).astype(int) * 8 + (draws[1::2] * 8).astype(int)
        pairs = np.bincount(cells, minlength=64)
        expected = count / 2 / 64
        assert ((pairs - expected) ** 2 / expected).sum() < chi_square_bound(63)


def test_every_bit_of_seed_and_position_flips_half_of_the_outputs_bits() -> None:
    count = 500
    rng = np.random.default_rng(0)
    seeds = [int(seed) for seed in rng.integers(0, 2**63, count)]
    positions = [int(position) for position in rng.integers(0, 2**20, count)]

    def bits(seeds: list[int], positions: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return (uniforms(seeds, positions) * 2.0**53).astype(np.int64)

    base = bits(seeds, positions)
    flipped = [bits([seed ^ 1 << n for seed in seeds], positions) for n in range(64)]
    flipped += [bits(seeds, [position ^ 1 << n for position in positions]) for n in range(20)]
    for other in flipped:
        for bit in range(53):
            share = float(((base ^ other) >> bit & 1).mean())
            assert abs(share - 0.5) < 6 * 0.5 / math.sqrt(count)  # 6 sigma over 4452 shares
