"""Random numbers that are a function of (seed, position) and of nothing else.

There is no generator state to carry, so a sequence that is continued on another machine, or in
another batch, draws what it would have drawn had it stayed.

Shape suffix: R draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_WORD = (1 << 64) - 1
_GOLDEN = np.uint64(
    0x9E3779B97F4A7C15
)  # 2**64 / golden ratio, odd: consecutive states lie far apart


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) of 53 random bits per (seed, position) pair, shape (R,).

    Each seed's positions are a SplitMix64 stream (Steele, Lea and Flood, OOPSLA 2014) that starts
    at the hash of the seed, so that neighbouring seeds are unrelated. Seeds count modulo 2**64.
    """
    seeds_R = np.array([seed & _WORD for seed in seeds], dtype=np.uint64)
    positions_R = np.array(positions, dtype=np.uint64)
    bits_R = _mix(_mix(seeds_R + _GOLDEN) + positions_R * _GOLDEN)
    return (bits_R >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(words_R: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finalizer: a bijection in which every input bit reaches every output bit."""
    words_R = (words_R ^ (words_R >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words_R = (words_R ^ (words_R >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words_R ^ (words_R >> np.uint64(31))
