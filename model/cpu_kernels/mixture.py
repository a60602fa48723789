"""The call that both kernels of experts share: a layer's rows in, weighted sums out.

Shape suffixes: T rows, D hidden, K experts per token, E experts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64


class LowRankAddresses(ctypes.Structure):
    """One expert for `CpuKernels.low_rank_experts`: packed factors and their even ranks.

    The C++ calls it LowRank. `first1` null: not held.
    """

    _fields_ = (
        ("first1", _POINTER),
        ("second1", _POINTER),
        ("first3", _POINTER),
        ("second3", _POINTER),
        ("first2", _POINTER),
        ("second2", _POINTER),
        ("rank1", _INT64),
        ("rank3", _INT64),
        ("rank2", _INT64),
    )


def mix(
    run: Callable[..., int],
    num_threads: int,
    x_TD: torch.Tensor,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    experts: tuple[ctypes.Array[Any], ...],
    inner: int,
    bits: int,
) -> torch.Tensor:
    """Return y_TD in bf16. `experts` are arrays by expert id, all of the same length.

    KeyError if an id names one that is not there.
    """
    rows, width = x_TD.shape
    ids_TK, weights_TK = ids_TK.to(torch.int64).contiguous(), weights_TK.contiguous()
    y_TD = torch.empty(rows, width, dtype=torch.bfloat16)
    missing = run(
        x_TD.data_ptr(),
        x_TD.stride(0),
        ids_TK.data_ptr(),
        weights_TK.data_ptr(),
        rows,
        ids_TK.shape[1],
        *experts,
        bits,
        len(experts[0]),
        width,
        inner,
        y_TD.data_ptr(),
        num_threads,
    )
    if missing:
        raise KeyError(f"expert {missing - 1} is not held here")
    return y_TD
