"""What is learned of steps: against machines whose costs are known in closed form."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actors.scheduling.sized_costs import most_rows, size_of
from actors.scheduling.step_costs import StepCosts


def calm_costs(*steps: tuple[int, float]) -> StepCosts:
    costs = StepCosts()
    for decodes, seconds in steps:
        costs.observe(decodes, 0, seconds)
    return costs


@given(st.integers(1, 1 << 20))
def test_sizes_are_half_octaves_without_gaps(rows: int) -> None:
    size = size_of(rows)
    assert rows <= most_rows(size) < 2 * rows
    assert size_of(most_rows(size)) == size < size_of(most_rows(size) + 1)


def test_what_was_not_seen_is_not_known() -> None:
    costs = StepCosts()
    costs.observe(0, 0, 5.0)  # a rest
    costs.observe(0, 100, 1.0)  # nothing was held up by it
    assert costs.calm_s(4) is None and costs.calm_age(4) == math.inf
    costs.observe(4, 100, 1.0)  # how much of it is the decodes'?
    assert costs.calm_s(4) is None and costs.prefill_rows(9.9) == 0


def test_a_calm_step_is_known_by_itssize_of() -> None:
    costs = calm_costs((4, 0.04), (16, 0.1), (4, 0.05), (5, 0.03))
    assert [costs.calm_s(n) for n in (4, 5, 16, 23)] == [0.03, 0.03, 0.1, 0.1]
    assert [costs.calm_age(n) for n in (4, 17, 6)] == [0, 2, math.inf]
    # Between and beyond what was seen: that of the size below, or what the rows' share would be.
    assert [costs.calm_s(n) for n in (6, 15, 64, 1)] == [0.03, 0.03, 0.1, pytest.approx(0.006)]


@given(st.lists(st.floats(0.01, 0.02), min_size=15, max_size=15))
def test_of_calm_steps_most_may_be_disturbed_and_old_ones_are_forgotten(calm: list[float]) -> None:
    costs = calm_costs(*((8, seconds) for seconds in [0.001] * 15 + calm))
    assert costs.calm_s(8) == sorted(calm)[3]
    for disturbed in range(11):
        assert 0.01 <= (costs.calm_s(8) or 0.0) <= 0.02
        costs.observe(8, 0, 0.5 + disturbed)


def test_when_rows_get_dearer_all_sizes_are_taken_for_dearer() -> None:
    costs = calm_costs((8, 0.02))
    for rows in (16, 32, 64):
        costs.observe(8, rows, 0.02 + 0.001 * rows)
    assert costs.prefill_rows(0.03) == 30
    for _ in range(2):  # as far into a long prompt; one such step might be a hiccup
        before = costs.prefill_rows(0.03)
        costs.observe(8, 64, 0.02 + 0.003 * 64)
    assert before == 30
    assert 10 <= costs.prefill_rows(0.03) <= 20
    for _ in range(3):
        costs.observe(8, 16, 0.02 + 0.001 * 16)
    assert costs.prefill_rows(0.03) >= 16


@given(
    fixed_s=st.floats(0.0, 0.1),
    row_s=st.floats(1e-5, 2e-3),
    seen=st.sets(st.sampled_from([8, 13, 20, 40, 100, 250, 500]), min_size=1),
    spare_s=st.floats(1e-3, 0.5),
)
def test_rows_fill_the_time_to_spare(
    fixed_s: float, row_s: float, seen: set[int], spare_s: float
) -> None:
    def extra_s(rows: float) -> float:
        return fixed_s + row_s * rows

    costs = calm_costs((8, 0.02))
    for rows in sorted(seen, reverse=True):
        costs.observe(8, rows, 0.02 + extra_s(rows))
    got = costs.prefill_rows(spare_s)
    assume(all(abs(spare_s - extra_s(rows)) > 1e-9 for rows in seen))
    if spare_s < extra_s(min(seen)):
        assert got == 0
    elif spare_s < extra_s(max(seen)):
        assert extra_s(got) <= spare_s + 1e-6 and extra_s(got + 1) >= spare_s - 1e-6
    else:
        most = max(seen)
        assert most <= got <= 2 * most
        # What is not seen of the first rows' price shows in how far it dares to go.
        assert got == 2 * most or got >= most * (spare_s / extra_s(most)) - 1.001
        if len(seen) > 1:
            assert extra_s(got) <= spare_s + 1e-6


def test_a_few_rows_say_nothing_of_their_price() -> None:
    costs = calm_costs((8, 0.02))
    costs.observe(8, 3, 0.5)
    assert costs.prefill_rows(1.0) == 0
    costs.observe(8, 40, 0.04)
    assert costs.prefill_rows(0.0201) == 40


def test_rows_that_seem_to_cost_nothing_at_most_double() -> None:
    costs = calm_costs((8, 0.02))
    costs.observe(8, 32, 0.015)  # the machine was busy in the calm step
    assert costs.prefill_rows(0.01) == 64


def test_fewer_rows_never_cost_more() -> None:
    costs = calm_costs((8, 0.02))
    costs.observe(8, 10, 0.10)  # the end of a prompt, and a hiccup: not seen again for long
    costs.observe(8, 100, 0.05)
    assert costs.prefill_rows(0.029) == 0
    assert costs.prefill_rows(0.0311) == 105


def test_whole_steps_are_known_by_their_sizes() -> None:
    costs = StepCosts()
    assert costs.whole_rows(9.9) == 0
    costs.observe(0, 63, 0.001)  # says nothing of many
    for rows, seconds in ((1000, 1.0), (1000, 9.0), (1000, 1.1), (200, 0.3)):
        costs.observe(0, rows, seconds)
    costs.observe(7, 600, 0.7)  # beside decodes: all of it counts
    assert costs.whole_rows(0.2) == 0
    assert costs.whole_rows(0.5) == 400
    assert costs.whole_rows(0.9) == 800
    assert costs.whole_rows(9.9) == 2000  # no more than twice what was seen
