"""How rank is spent: against brute force, and against the errors of real matrices."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.compress.allocation import Shape, Spectrum, parameters_at, same_rank, spend
from ops.compress.factorize import factorize, spectrum

SHAPES = [(6, 8), (8, 6), (7, 7), (5, 12)]


@st.composite
def spectra_of(draw: st.DrawFn, *, alike: bool) -> dict[str, Spectrum]:
    count = draw(st.integers(1, 3))
    shapes = [SHAPES[0] if alike else draw(st.sampled_from(SHAPES)) for _ in range(count)]
    spectra = {}
    for index, shape in enumerate(shapes):
        sizes = st.floats(0.01, 4.0)
        values = draw(st.lists(sizes, min_size=min(shape), max_size=min(shape)))
        spectra[f"m{index}"] = Spectrum.of(Shape(*shape), np.array(sorted(values, reverse=True)))
    return spectra


def error(spectra: Mapping[str, Spectrum], ranks: Mapping[str, int | None]) -> float:
    return sum(one.error(ranks[name]) for name, one in spectra.items())


def shapes_of(spectra: Mapping[str, Spectrum]) -> dict[str, Shape]:
    return {name: one.shape for name, one in spectra.items()}


def least_error(spectra: Mapping[str, Spectrum], budget: int) -> float:
    """Over all ranks below dense: every combination tried."""
    each = [
        [rank for rank in range(1, 9) if one.shape.rank_or_dense(rank)] for one in spectra.values()
    ]
    tried = (dict(zip(spectra, ranks, strict=True)) for ranks in itertools.product(*each))
    shapes = shapes_of(spectra)
    return min(error(spectra, one) for one in tried if parameters_at(shapes, one) <= budget)


def least_and_most(spectra: Mapping[str, Spectrum]) -> tuple[int, int]:
    """Parameters at rank 1 everywhere, and at the highest ranks that make all smaller."""
    highest = {
        name: max(rank for rank in range(1, 9) if one.shape.rank_or_dense(rank))
        for name, one in spectra.items()
    }
    shapes = shapes_of(spectra)
    return parameters_at(shapes, same_rank(shapes, 1)), parameters_at(shapes, highest)


@settings(max_examples=100, deadline=None)
@given(spectra_of(alike=True), st.data())
def test_of_equal_shapes_no_other_ranks_are_better(
    spectra: dict[str, Spectrum], data: st.DataObject
) -> None:
    least, most = least_and_most(spectra)
    budget = data.draw(st.integers(least, most))
    ranks = spend(spectra, budget, 1)
    if None not in ranks.values():  # becoming dense costs less than a step: see the next test
        assert error(spectra, ranks) == pytest.approx(least_error(spectra, budget), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(spectra_of(alike=False), st.data())
def test_of_any_shapes_at_most_a_step_is_lost(
    spectra: dict[str, Spectrum], data: st.DataObject
) -> None:
    """What the budget less the dearest step could buy at best, greed has bought."""
    least, most = least_and_most(spectra)
    budget = data.draw(st.integers(least, most))
    ranks = spend(spectra, budget, 1)
    assert parameters_at(shapes_of(spectra), ranks) <= budget
    dearest = max(sum((one.shape.outputs, one.shape.inputs)) for one in spectra.values())
    if budget - dearest >= least:
        assert error(spectra, ranks) <= least_error(spectra, budget - dearest) + 1e-9


@given(spectra_of(alike=False), st.integers(1, 3), st.integers(0, 400))
def test_ranks_are_steps_that_fit_and_make_smaller(
    spectra: dict[str, Spectrum], step: int, more: int
) -> None:
    shapes = shapes_of(spectra)
    budget = parameters_at(shapes, same_rank(shapes, step)) + more
    ranks = spend(spectra, budget, step)
    assert ranks.keys() == spectra.keys()
    assert parameters_at(shapes, ranks) <= budget
    for name, rank in ranks.items():
        assert rank is None or (
            rank % step == 0
            and rank * (shapes[name].outputs + shapes[name].inputs)
            < shapes[name].outputs * shapes[name].inputs
        )
    dense = parameters_at(shapes, dict.fromkeys(shapes))
    assert set(spend(spectra, dense, step).values()) == {None}
    with pytest.raises(ValueError, match="fewer than rank"):
        spend(spectra, parameters_at(shapes, same_rank(shapes, step)) - 1, step)


def test_rank_goes_where_the_spectrum_needs_it() -> None:
    shape = Shape(32, 32)
    flat = Spectrum.of(shape, np.ones(32))
    steep = Spectrum.of(shape, 0.5 ** np.arange(32.0))
    ranks = spend({"flat": flat, "steep": steep}, 16 * 64, 1)
    assert ranks["steep"] is not None and ranks["flat"] is not None
    assert ranks["steep"] <= 4 and ranks["flat"] == 16 - ranks["steep"]
    # A half, a quarter ... of its root: one more is worth 3/4 of what is left, or 1/32 of all.
    assert 0.25 ** ranks["steep"] * 0.75 < 1 / 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_the_error_foretold_is_that_of_the_factors(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    errors = spectrum(weight)
    assert errors.error(24) == pytest.approx(0, abs=1e-6) and errors.error(0) == 1
    for rank in (1, 7, 20):
        made = factorize(weight, rank)
        assert made.first_RI.shape == (rank, shape[1])
        assert made.second_OR.shape == (shape[0], rank)
        assert made.first_RI.dtype == made.second_OR.dtype == dtype
        missed = weight.double() - made.second_OR.double() @ made.first_RI.double()
        assert made.squared_norm == pytest.approx(float(weight.double().square().sum()))
        assert made.squared_error == pytest.approx(float(missed.square().sum()), rel=1e-4)
        rounding = 0 if dtype == torch.float32 else 1e-3
        share = made.squared_error / made.squared_norm
        assert share == pytest.approx(errors.error(rank), rel=1e-4, abs=rounding)
        u, s, v = np.linalg.svd(weight.double().numpy())
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        product = (made.second_OR.double() @ made.first_RI.double()).numpy()
        assert np.abs(product - best).max() < (1e-4 if dtype == torch.float32 else 0.1)


def test_a_matrix_of_zeros_and_one_that_is_not_finite() -> None:
    assert spectrum(torch.zeros(4, 6)).error(1) == 0
    broken = torch.ones(4, 6)
    broken[1, 2] = torch.nan
    for work in (spectrum, lambda matrix: factorize(matrix, 1)):
        with pytest.raises(ValueError, match="finite"):
            work(broken)
