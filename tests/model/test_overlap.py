"""The price of micro-batches: the formula against a pipeline played through, event by event."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.overlap import LinearCost, OverlapCosts, Point

LAYERS = 400
SECONDS = st.floats(0.0, 2.0)


def played_through(costs: OverlapCosts, micro_batches: int, rows: int, all_rows: int) -> float:
    """When the last sums of LAYERS layers are back: attention and experts each do one thing at a
    time, in the order (layer, micro-batch); rows and sums are on their way for half of travel."""
    of_layer = 1.0 / (LAYERS * micro_batches)
    attention_s = costs.attention.of(micro_batches, rows) * of_layer
    expert_s = costs.expert.of(micro_batches, all_rows) * of_layer
    half_way_s = costs.travel.of(micro_batches, rows) * of_layer / 2
    attention_free = expert_free = 0.0
    back = [0.0] * micro_batches
    for _ in range(LAYERS):
        for index in range(micro_batches):
            attention_free = max(attention_free, back[index]) + attention_s
            expert_free = max(expert_free, attention_free + half_way_s) + expert_s
            back[index] = expert_free + half_way_s
    return max(back)


@given(SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, st.integers(1, 3))
def test_the_prediction_is_what_a_played_pipeline_takes(
    a: float, b: float, c: float, d: float, e: float, f: float, micro_batches: int
) -> None:
    costs = OverlapCosts(LinearCost(a, b), LinearCost(c, d), LinearCost(e, f))
    predicted_s = costs.step_s(micro_batches, 1, 2)
    # It leaves out the first and the last layer, where one side is idle.
    ramp_s = (costs.step_s(1, 1, 2) + predicted_s) * micro_batches / LAYERS
    assert predicted_s == pytest.approx(
        played_through(costs, micro_batches, 1, 2), abs=ramp_s + 1e-9
    )


def test_the_closed_forms() -> None:
    costs = OverlapCosts(LinearCost(0.25, 0.5), LinearCost(1.0, 0.125), LinearCost(0.0, 0.0))
    assert costs.step_s(1, 8, 16) == (0.25 + 4.0) + (1.0 + 2.0)
    assert costs.step_s(2, 8, 16) == max(0.5 + 4.0, 2.0 + 2.0)
    assert costs.step_s(3, 8, 16) == max(0.75 + 4.0, 3.0 + 2.0)


def costs_of(
    attention: tuple[float, float], expert: tuple[float, float], travel: tuple[float, float]
) -> OverlapCosts:
    return OverlapCosts(LinearCost(*attention), LinearCost(*expert), LinearCost(*travel))


@pytest.mark.parametrize(
    ("costs", "want"),
    [
        # Rows cost and batches do not: two hide the cheaper side whole.
        (costs_of((0.0, 1.0), (0.0, 1.0), (0.0, 0.0)), 2),
        # Experts are bound by memory: each micro-batch reads the weights again.
        (costs_of((0.0, 1.0), (100.0, 0.0), (0.0, 0.0)), 1),
        # So is attention.
        (costs_of((100.0, 0.0), (0.0, 1.0), (0.0, 0.0)), 1),
        # Two leave both sides waiting for what is on its way, three do not.
        (costs_of((0.0, 1.0), (0.0, 1.0), (0.0, 1.0)), 3),
        # 8 + 100 rows against 100: not worth it.
        (costs_of((0.0, 0.08), (0.0, 1.0), (0.0, 0.0)), 1),
        # Nothing is known yet.
        (costs_of((0.0, 0.0), (0.0, 0.0), (0.0, 0.0)), 1),
    ],
)
def test_the_best_number(costs: OverlapCosts, want: int) -> None:
    assert costs.best(100, 100, 0.1) == want


@given(
    st.floats(0.0, 1.0),
    st.floats(1e-6, 1e-2),
    st.lists(st.tuples(st.integers(1, 3), st.integers(64, 512)), min_size=2, max_size=12),
)
def test_a_line_is_found_again(batch_s: float, row_s: float, steps: list[tuple[int, int]]) -> None:
    true = LinearCost(batch_s, row_s)
    fitted = LinearCost.fit([Point(m, rows, true.of(m, rows)) for m, rows in steps])
    assert fitted.batch_s >= 0 and fitted.row_s >= 0
    per_batch = sorted(rows / m for m, rows in steps)
    if per_batch[-1] > 1.5 * per_batch[0]:
        assert fitted.batch_s == pytest.approx(batch_s, rel=1e-3, abs=1e-6)
        assert fitted.row_s == pytest.approx(row_s, rel=1e-3, abs=1e-8)
    elif per_batch[-1] == per_batch[0]:
        # Nothing tells the parts apart: a step of that size costs what it did.
        m, rows = steps[0]
        assert fitted.row_s == 0.0
        assert fitted.of(m, rows) == pytest.approx(true.of(m, rows))


def test_parts_are_never_below_zero() -> None:
    falling = LinearCost.fit([Point(1, 64, 2.0), Point(1, 128, 1.0)])
    assert falling.row_s == 0.0 and 1.0 < falling.batch_s < 2.0
    through_nothing = LinearCost.fit([Point(1, 64, 1.0), Point(1, 128, 4.0)])
    assert through_nothing.batch_s == 0.0 and 1.0 / 64 < through_nothing.row_s < 4.0 / 128
    assert LinearCost.fit([]) == LinearCost(0.0, 0.0)
