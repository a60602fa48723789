from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.assignment import assign


@pytest.mark.parametrize(
    ("num_requests", "unfinished", "want"),
    [
        (0, [3, 1], []),
        (3, [0], [0, 0, 0]),
        (4, [0, 0, 0], [0, 1, 2, 0]),
        (3, [2, 0], [1, 1, 0]),
        (2, [5, 5, 1], [2, 2]),
    ],
)
def test_the_actor_with_the_fewest_gets_the_next(
    num_requests: int, unfinished: list[int], want: list[int]
) -> None:
    before = list(unfinished)
    assert assign(num_requests, unfinished) == want
    assert unfinished == before


@given(st.integers(0, 40), st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_no_actor_that_got_one_has_two_more_than_another(
    num_requests: int, unfinished: list[int]
) -> None:
    chosen = assign(num_requests, unfinished)
    assert len(chosen) == num_requests
    after = [n + chosen.count(index) for index, n in enumerate(unfinished)]
    for index in chosen:
        assert after[index] <= min(after) + 1
