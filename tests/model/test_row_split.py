"""Which holder computes which rows: against the optimum, over all sets of ranks."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from model.placement import ExpertPlacement, split_evenly
from model.row_split import RowSplit

NUM_EXPERTS, RANKS = 8, (2, 3, 5, 7)
Layer = tuple[tuple[int, ...], ...]

some_holders = st.lists(st.sampled_from(RANKS), min_size=1, unique=True).map(tuple)
some_layer = st.tuples(*[some_holders] * NUM_EXPERTS)


@st.composite
def some_ids(draw: st.DrawFn) -> np.ndarray:
    """[T, 2], no expert twice in a row, some experts far more often than others."""
    popularity = draw(st.lists(st.integers(1, 60), min_size=NUM_EXPERTS, max_size=NUM_EXPERTS))
    num_rows = draw(st.integers(1, 400))
    noise = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    keys_TE = noise.random((num_rows, NUM_EXPERTS)) ** (1 / np.array(popularity))
    return np.argsort(-keys_TE, axis=1)[:, :2].astype(np.int64)


def counts(ids_TK: np.ndarray) -> list[int]:
    return [int((ids_TK == expert).sum()) for expert in range(NUM_EXPERTS)]


def optimum(rows_E: list[int], layer: Layer) -> float:
    """The least load of the busiest rank: no set of ranks can pass on what only it holds."""
    sets = (set(some) for size in range(1, 5) for some in combinations(RANKS, size))
    return max(
        sum(rows for rows, held in zip(rows_E, layer) if set(held) <= some) / len(some)
        for some in sets
    )


def split(layer: Layer, ids_TK: np.ndarray, min_chunk: int) -> np.ndarray:
    return RowSplit(ExpertPlacement(1, (layer,)), min_chunk).holders(0, ids_TK)


def busiest(holder_TK: np.ndarray) -> int:
    return max(Counter(holder_TK.ravel().tolist()).values())


@given(some_layer, some_ids(), st.integers(1, 40))
@settings(deadline=None)
def test_every_choice_goes_to_a_holder_in_runs_that_are_worth_it(
    layer: Layer, ids_TK: np.ndarray, min_chunk: int
) -> None:
    holder_TK = split(layer, ids_TK, min_chunk)
    assert holder_TK.shape == ids_TK.shape and holder_TK.dtype == np.int64
    for expert, held in enumerate(layer):
        ranks = holder_TK[ids_TK == expert]
        runs = Counter(ranks.tolist())
        assert set(runs) <= set(held)
        if len(ranks):
            assert 1 + np.count_nonzero(np.diff(ranks)) == len(runs)  # contiguous
        if len(ranks) < min_chunk:
            assert len(runs) <= 1
        if len(runs) > 1:
            assert 2 * min(runs.values()) >= min_chunk


@given(some_ids(), st.integers(0, 7), some_holders, st.integers(1, 40))
@settings(deadline=None)
def test_one_replicated_expert_evens_out_up_to_one_chunk(
    ids_TK: np.ndarray, expert: int, held: tuple[int, ...], min_chunk: int
) -> None:
    layer: list[tuple[int, ...]] = [(RANKS[e // 2],) for e in range(NUM_EXPERTS)]
    layer[expert] = held
    best = optimum(counts(ids_TK), tuple(layer))
    assert best <= busiest(split(tuple(layer), ids_TK, min_chunk)) < best + max(min_chunk, 1)


@given(some_layer, some_ids())
@settings(deadline=None)
def test_many_replicated_experts_even_out_nearly(layer: Layer, ids_TK: np.ndarray) -> None:
    best = optimum(counts(ids_TK), layer)
    assert busiest(split(layer, ids_TK, 1)) <= best * 1.1 + len(RANKS)


def test_every_rank_holds_all_so_all_have_the_same() -> None:
    ids_TK = np.array([[0, 1]] * 300 + [[1, 2]] * 100)
    holder_TK = split((RANKS,) * NUM_EXPERTS, ids_TK, 16)
    assert Counter(holder_TK.ravel().tolist()) == dict.fromkeys(RANKS, 200)


def test_rows_are_divided_in_row_order() -> None:
    """Rank 2 has 10 rows of its own and rank 3 has 30: 40 of the 60 go to rank 2."""
    layer = ((2, 3), (2,), (3,), *[(5,)] * 5)
    ids_TK = np.array([[0, 1]] * 10 + [[2, 0]] * 30 + [[0, 4]] * 20)
    of_expert_0 = split(layer, ids_TK, 16)[ids_TK == 0].tolist()
    assert of_expert_0 == [2] * 40 + [3] * 20


def test_runs_of_half_a_chunk_are_worth_it_and_shorter_ones_are_not() -> None:
    layer = ((2, 3, 5), *[(7,)] * 7)
    for rows, runs in ((31, [11, 10, 10]), (24, [8, 8, 8]), (23, [12, 11]), (16, [8, 8])):
        ranks = split(layer, np.array([[0, 1]] * rows), 16)[:, 0].tolist()
        assert sorted(Counter(ranks).values(), reverse=True) == runs


@pytest.mark.parametrize("rows", [1, 15])
def test_few_rows_go_whole_to_the_least_busy_holder(rows: int) -> None:
    layer = ((2, 3), (2,), *[(5,)] * 6)
    assert split(layer, np.array([[0, 1]] * rows), 16)[:, 0].tolist() == [3] * rows


def test_a_layer_without_replicas_is_a_table() -> None:
    placement = split_evenly(2, NUM_EXPERTS, RANKS)
    ids_TK = np.arange(8).reshape(4, 2)
    assert RowSplit(placement).holders(1, ids_TK).tolist() == [[2, 2], [3, 3], [5, 5], [7, 7]]


def test_layers_are_independent_and_answers_repeat() -> None:
    both = ExpertPlacement(1, (((2, 3),) + ((5,),) * 7, ((5,),) * 8))
    ids_TK = np.array([[0, 3]] * 64)
    row_split = RowSplit(both)
    first = row_split.holders(0, ids_TK)
    assert (row_split.holders(1, ids_TK) == 5).all()
    assert (row_split.holders(0, ids_TK) == first).all() and set(first[:, 0].tolist()) == {2, 3}


def test_an_expert_without_a_holder_is_refused() -> None:
    with pytest.raises(ValueError, match="expert 1 of layer 0 has no holder"):
        RowSplit(ExpertPlacement(1, (((2,), ()),)))


def test_no_rows_go_nowhere() -> None:
    assert split(((2, 3),) * 8, np.zeros((0, 2), np.int64), 16).shape == (0, 2)
