from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.http.errors import Overloaded
from actors.http.waiting_line import LineLimits, WaitingLine, retry_after_s

PROMPTS = st.lists(st.integers(1, 50), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("waiting", "tokens", "prompts", "flag"),
    [
        (0, 0, [100] * 9, None),  # an empty line takes any one request
        (3, 10, [5], None),
        (3, 10, [], None),
        (3, 10, [5, 5], "--max-num-queued-reqs"),
        (4, 10, [], "--max-num-queued-reqs"),
        (1, 10, [10], None),
        (1, 10, [11], "--max-queued-tokens"),
        (1, 10, [5, 6], "--max-queued-tokens"),
        (1, 20, [], "--max-queued-tokens"),
    ],
)
def test_who_may_join(waiting: int, tokens: int, prompts: list[int], flag: str | None) -> None:
    excess, why = LineLimits(sequences=4, tokens=20).excess(waiting, tokens, prompts)
    assert (excess > 0) == (flag is not None)
    assert flag is None or flag in why


@given(st.integers(1, 8), st.integers(1, 120), st.lists(PROMPTS, max_size=30))
def test_the_line_never_holds_more_than_it_may(
    most: int, most_tokens: int, requests: list[list[int]]
) -> None:
    line = WaitingLine(LineLimits(most, most_tokens))
    held: list[tuple[object, list[int]]] = []
    for number, prompts in enumerate(requests):
        fits = (
            sum(len(p) for _, p in held) + len(prompts) <= most
            and sum(sum(p) for _, p in held) + sum(prompts) <= most_tokens
        )
        places = line.places(prompts, now_s=number)
        try:
            places.__enter__()
        except Overloaded as error:
            assert held and not fits
            assert error.retry_after_s is not None and 1 <= error.retry_after_s <= 60
        else:
            assert fits or not held
            held.append((places, prompts))
        if number % 3 == 2 and held:
            held.pop(0)[0].__exit__(None, None, None)  # type: ignore[attr-defined]
        assert line.sequences == sum(len(p) for _, p in held)
        assert line.tokens == sum(sum(p) for _, p in held)


def test_a_place_is_given_up_once() -> None:
    line = WaitingLine(LineLimits(2))
    with line.places([5, 7], 0.0) as (first, second):
        first.served(1.0)
        first.served(2.0)
        first.give_up()
        assert (line.sequences, line.tokens) == (1, 7)
        with line.places([1], 2.0):
            assert line.sequences == 2
        second.served(3.0)
    assert (line.sequences, line.tokens) == (0, 0)


def test_when_to_come_again_follows_from_the_line_s_pace() -> None:
    every_half_second = [90.0 + i / 2 for i in range(21)]
    assert retry_after_s(10, every_half_second, 100.0) == pytest.approx(10 * 10 / 21)
    assert retry_after_s(1, every_half_second, 100.0) == 1.0
    assert retry_after_s(1e6, every_half_second, 100.0) == 60.0
    assert retry_after_s(5, [], 100.0) == 1.0  # nothing is known yet
    assert retry_after_s(1, every_half_second, 500.0) == 60.0  # it stands still
