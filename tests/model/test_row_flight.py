"""Rows packed for the expert ranks and their sums: against loops, by numpy and by the kernel."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.cpu_kernels.row_flight import KernelRowFlight, make_row_flight
from model.placement import ExpertPlacement
from model.row_flight import RowFlight
from model.row_message import RowShape
from model.row_split import RowSplit
from tests.compiled_kernels import compiled_library

CPU = torch.device("cpu")
MOST_ROWS = 12
HIDDEN = 21  # no multiple of a vector
RANKS = (4, 7, 2, 9)  # in the group's order, whatever their numbers
EXPERTS = 6


@pytest.fixture(scope="module", params=["numpy", "kernel"])
def library(request: pytest.FixtureRequest) -> ctypes.CDLL | None:
    if request.param == "numpy":
        return None
    return compiled_library()


def flight_of(library: ctypes.CDLL | None, top_k: int, dtype: torch.dtype) -> RowFlight:
    shape = RowShape(MOST_ROWS, HIDDEN, top_k, dtype, CPU)
    if library is None:
        return RowFlight(RANKS, shape)
    return KernelRowFlight(library, RANKS, shape)


@given(
    st.integers(1, 5).flatmap(
        lambda top_k: st.tuples(
            st.just(top_k),
            st.lists(st.permutations(range(EXPERTS)).map(lambda ids: ids[:top_k]), max_size=12),
        )
    ),
    # Of every expert: its holders.
    st.lists(
        st.lists(st.sampled_from(RANKS), min_size=1, max_size=2, unique=True).map(tuple),
        min_size=EXPERTS,
        max_size=EXPERTS,
    ),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
)
def test_each_rank_gets_its_rows_and_each_row_its_sums(
    library: ctypes.CDLL | None,
    choices: tuple[int, list[list[int]]],
    holders: list[tuple[int, ...]],
    dtype: torch.dtype,
    strided: bool,
) -> None:
    top_k, ids = choices
    rows = len(ids)
    ids_TK = torch.tensor(ids, dtype=torch.int64).view(rows, top_k)
    weights_TK = (torch.arange(rows * top_k, dtype=torch.float32) + 1).view(rows, top_k)
    x_TD = torch.randn(rows, 2 * HIDDEN).to(dtype)
    x_TD = x_TD[:, ::2] if strided else x_TD[:, :HIDDEN].contiguous()
    split = RowSplit(ExpertPlacement(1, (((RANKS[0],),) * EXPERTS, tuple(holders))), 1)
    holder_TK = torch.from_numpy(split.holders(1, ids_TK.numpy()))
    flight = flight_of(library, top_k, dtype)
    for message in flight.messages:
        message._host.fill_(0xFF)

    counts = list(flight.pack(1, x_TD, ids_TK, weights_TK, split))

    flight.sums_SD[:-1] = torch.nan
    want_TD: list[torch.Tensor | None] = [None] * rows
    place = 0
    for rank, message, count in zip(RANKS, flight.messages, counts, strict=True):
        mine = [t for t in range(rows) if rank in holder_TK[t]]
        assert count == message.count == len(mine)
        assert torch.equal(message.rows(count), x_TD[mine])
        for n, t in enumerate(mine):
            here_K = holder_TK[t] == rank
            assert torch.equal(
                message.ids(count)[n], torch.where(here_K, ids_TK[t], -1).to(torch.int32)
            )
            assert torch.equal(message.weights(count)[n][here_K], weights_TK[t][here_K])
            sum_D = torch.randn(HIDDEN).to(dtype)
            flight.sums_SD[place] = sum_D
            before = want_TD[t]
            want_TD[t] = sum_D if before is None else before + sum_D
            place += 1
    y_TD = flight.add_up()
    assert (y_TD.shape, y_TD.dtype) == (x_TD.shape, dtype)
    for t, want in enumerate(want_TD):
        assert want is not None and torch.equal(y_TD[t], want)


def test_rows_on_another_device_are_packed_by_torch() -> None:
    elsewhere = RowShape(MOST_ROWS, HIDDEN, 2, torch.bfloat16, torch.device("meta"))
    assert type(make_row_flight(RANKS, elsewhere)) is RowFlight
