"""The load of the last seconds from growing counters, and when the balancer speaks."""

from __future__ import annotations

from typing import Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given

from actors.placement.load_window import BalancePolicy, Balancer, LoadWindow
from model.placement import split_evenly

EVEN = split_evenly(1, 4, [0, 1])
SKEWED = [[400, 400, 100, 100]]


def test_counters_become_what_was_counted_in_the_window() -> None:
    window = LoadWindow(10.0)
    assert window.load(0.0) == []
    window.add(0.0, {"a": [[5, 0]], "b": [[1, 1]]})
    window.add(4.0, {"a": [[7, 2]], "b": [[1, 2]]})
    assert window.load(4.0) == [[8, 4]]
    assert window.load(9.9) == [[8, 4]]
    assert window.load(10.0) == [[2, 3]]  # what came at 0 is out
    assert window.load(14.0) == [[0, 0]]


def test_an_actor_that_is_new_or_restarted_began_at_zero() -> None:
    window = LoadWindow(10.0)
    window.add(0.0, {"a": [[100, 100]]})
    window.add(9.0, {"a": [[100, 3]], "b": [[4, 4]]})
    assert window.load(12.0) == [[104, 7]]


def test_an_actor_not_heard_for_a_while_is_not_counted_twice() -> None:
    window = LoadWindow(10.0)
    window.add(0.0, {"a": [[100]], "b": [[1]]})
    window.add(5.0, {"b": [[2]]})
    window.add(20.0, {"a": [[130]], "b": [[2]]})
    assert window.load(20.0) == [[30]]


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 50), st.booleans()), min_size=1))
def test_window_load_is_the_sum_of_recent_counts(
    beats: list[tuple[float, int, bool]],
) -> None:
    window, now_s, total, counted = LoadWindow(5.0), 0.0, 0, []
    for pause_s, rows, restarts in beats:
        now_s += pause_s
        grows_above = restarts and rows >= total  # would look like no restart
        total = rows if restarts and not grows_above else total + rows
        counted.append((now_s, rows))
        window.add(now_s, {"a": [[total]]})
    assert window.load(now_s) == [[sum(n for at_s, n in counted if at_s > now_s - 5.0)]]


def policy(mode: Literal["off", "advise", "auto"], **other: float) -> BalancePolicy:
    return BalancePolicy(mode, cooldown_s=30.0, window_s=20.0, min_rows=1000, **other)


def test_off_is_silent_but_the_window_fills() -> None:
    balancer = Balancer(policy("off"))
    balancer.window.add(0.0, {"a": SKEWED})
    assert balancer.consider(0.0, EVEN, [0, 1], 2) is None
    assert balancer.window.load(0.0) == SKEWED


@pytest.mark.parametrize("mode", ["advise", "auto"])
def test_a_proposal_is_followed_by_the_cool_down(mode: Literal["advise", "auto"]) -> None:
    balancer = Balancer(policy(mode))
    for now_s in range(0, 90, 2):
        balancer.window.add(now_s, {"a": [[(1 + now_s) * rows for rows in SKEWED[0]]]})
        decision = balancer.consider(now_s, EVEN, [0, 1], 2)
        assert (decision is not None) == (now_s % 30 == 0)
        if decision is not None:
            assert decision.placement is not None
            assert decision.gain == pytest.approx(1 - 500 / 800)
            assert decision.placement.version == EVEN.version + 1


def test_too_few_rows_are_no_ground_for_anything() -> None:
    balancer = Balancer(policy("auto"))
    assert balancer.consider(0.0, EVEN, [0, 1], 2) is None  # nothing heard yet
    balancer.window.add(0.0, {"a": [[400, 400, 100, 99]]})
    assert balancer.consider(0.0, EVEN, [0, 1], 2) is None
    balancer.window.add(1.0, {"a": SKEWED})
    assert balancer.consider(1.0, EVEN, [0, 1], 2) is not None


def test_to_let_all_stay_is_a_decision_without_a_cool_down() -> None:
    balancer = Balancer(policy("auto", min_gain=0.4))
    balancer.window.add(0.0, {"a": SKEWED})
    stay = balancer.consider(0.0, EVEN, [0, 1], 2)
    assert stay is not None and stay.placement is None and "below 40%" in stay.reason
    assert balancer.consider(1.9, EVEN, [0, 1], 2) is None  # the same load, nearly
    balancer.window.add(2.0, {"a": [[3000, 3000, 100, 100]]})
    change = balancer.consider(2.0, EVEN, [0, 1], 2)
    assert change is not None and change.placement is not None
