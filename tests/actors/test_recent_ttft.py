"""The time to the first token as autoscaling sees it."""

from __future__ import annotations

import pytest

from actors.metrics.recent_ttft import WINDOW_S, RecentTtft


def test_it_is_the_mean_of_the_first_tokens_in_the_window() -> None:
    ttft = RecentTtft()
    assert ttft.value_s(100.0) == 0.0
    for name, took_s in (("a", 1.0), ("b", 3.0)):
        ttft.arrived(name, 100.0)
        ttft.token(name, 100.0 + took_s)
        ttft.token(name, 110.0)  # not its first
    assert ttft.value_s(110.0) == 2.0
    assert ttft.value_s(101.0 + WINDOW_S + 1) == 3.0
    assert ttft.value_s(103.0 + WINDOW_S + 1) == 0.0


def test_whoever_waits_in_vain_counts_before_its_token_comes() -> None:
    ttft = RecentTtft()
    ttft.arrived("stuck", 100.0)
    ttft.arrived("later", 108.0)
    assert ttft.value_s(109.0) == 9.0
    ttft.left("stuck")
    assert ttft.value_s(109.0) == 1.0
    ttft.token("stuck", 120.0)
    ttft.left("later")
    assert ttft.value_s(120.0) == 0.0


def test_clocks_that_disagree_make_no_negative_times() -> None:
    ttft = RecentTtft()
    ttft.arrived("a", 100.0)
    ttft.token("a", 99.0)
    assert ttft.value_s(99.5) == pytest.approx(0.0)
