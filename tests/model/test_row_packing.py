"""Rows packed for the expert ranks: against a loop over rows, by numpy and by the kernel."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.cpu_kernels.packing import KernelRowPacker, row_packer
from model.row_message import RowMessage
from model.row_packing import RowPacker
from tests.compiled_kernels import compiled_library

CPU = torch.device("cpu")
MOST_ROWS = 12
HIDDEN = 5


@pytest.fixture(scope="module", params=["numpy", "kernel"])
def library(request: pytest.FixtureRequest) -> ctypes.CDLL | None:
    if request.param == "numpy":
        return None
    return compiled_library()


def packer_of(library: ctypes.CDLL | None, ranks: list[int], most_ranks: int) -> RowPacker:
    if library is None:
        return RowPacker(ranks, most_ranks, 99)
    return KernelRowPacker(library, ranks, most_ranks, 99)


@given(
    st.integers(1, 3).flatmap(
        lambda top_k: st.tuples(
            st.just(top_k),
            st.lists(st.lists(st.integers(0, 3), min_size=top_k, max_size=top_k), max_size=12),
        )
    ),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
)
def test_each_rank_gets_its_rows_and_each_row_finds_its_sums(
    library: ctypes.CDLL | None,
    choices: tuple[int, list[list[int]]],
    dtype: torch.dtype,
    strided: bool,
) -> None:
    top_k, holders = choices
    ranks = [4, 7, 2, 9]  # in the group's order, whatever their numbers
    rows = len(holders)
    holder_TK = np.array(holders, np.int64).reshape(rows, top_k)
    holder_TK = np.array(ranks)[holder_TK]
    ids_TK = np.arange(rows * top_k).reshape(rows, top_k) % 8
    weights_TK = (np.arange(rows * top_k, dtype=np.float32) + 1).reshape(rows, top_k)
    x_TD = torch.randn(rows, 2 * HIDDEN).to(dtype)
    x_TD = x_TD[:, ::2] if strided else x_TD[:, :HIDDEN].contiguous()
    messages = [RowMessage(MOST_ROWS, HIDDEN, top_k, dtype, CPU) for _ in ranks]
    for message in messages:
        message._host.fill_(0xFF)
    most_ranks = min(top_k, len(ranks))
    packed = packer_of(library, ranks, most_ranks).pack(
        x_TD, ids_TK, weights_TK, holder_TK, messages
    )

    places: list[list[int]] = [[] for _ in range(rows)]
    place = 0
    for rank, message, count in zip(ranks, messages, packed.counts, strict=True):
        mine = [t for t in range(rows) if rank in holder_TK[t]]
        assert count == message.count == len(mine)
        assert torch.equal(message.rows(count), x_TD[mine])
        for n, t in enumerate(mine):
            here = holder_TK[t] == rank
            assert message.ids(count)[n].tolist() == np.where(here, ids_TK[t], -1).tolist()
            weights = message.weights(count)[n].numpy()
            assert (weights[here] == weights_TK[t][here]).all()
            places[t].append(place)
            place += 1
    assert packed.places_JT.shape == (most_ranks, rows)
    for t, own in enumerate(places):
        assert packed.places_JT[:, t].tolist() == own + [99] * (most_ranks - len(own))


def test_rows_on_another_device_are_packed_by_torch() -> None:
    assert type(row_packer([1], 1, 9, torch.device("cuda"))) is RowPacker
