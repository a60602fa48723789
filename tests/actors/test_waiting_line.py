from __future__ import annotations

from collections import deque
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.http.errors import Overloaded
from actors.http.waiting_line import LineLimits, Place, WaitingLine, expected_wait_s, retry_after_s

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


def test_how_long_a_line_takes_follows_from_what_left_it() -> None:
    every_half_second = [90.0 + i / 2 for i in range(20)]
    assert expected_wait_s(30, every_half_second, 100.0) == pytest.approx(30 * 10 / 19)
    assert expected_wait_s(30, every_half_second, 190.0) == pytest.approx(
        30 * 100 / 19
    )  # it stands
    assert expected_wait_s(16, every_half_second, 190.0) == 0.0  # no line
    assert expected_wait_s(30, every_half_second[:3], 100.0) == 0.0  # too few to tell


class Served:
    """A line of which one sequence has its first token every `each_s`; time is virtual."""

    def __init__(self, limits: LineLimits, each_s: float) -> None:
        self.line = WaitingLine(limits)
        self.waits_s: list[float] = []  # of those that had their first token
        self.refused = 0
        self._each_s = each_s
        self._free_s = 0.0  # when the next may have its first token
        self._waiting: deque[tuple[float, Place]] = deque()
        self._open = ExitStack()

    def arrive(self, now_s: float, prompts: int = 1) -> None:
        """A request comes."""
        self.run_until(now_s)
        try:
            places = self._open.enter_context(self.line.places([1] * prompts, now_s))
        except Overloaded as error:
            self.refused += 1
            assert error.retry_after_s is not None and 1 <= error.retry_after_s <= 60
        else:
            self._waiting += [(now_s, place) for place in places]

    def run_until(self, now_s: float) -> None:
        """First tokens up to then."""
        while self._waiting:
            came_s, place = self._waiting[0]
            token_s = max(self._free_s, came_s) + self._each_s
            if token_s > now_s:
                break
            self._waiting.popleft()
            self._free_s = token_s
            place.served(token_s)
            self.waits_s.append(token_s - came_s)


@pytest.mark.parametrize("each_s", [0.005, 0.03, 0.1])
def test_ten_times_what_is_served_waits_for_so_long_and_no_longer(each_s: float) -> None:
    served = Served(LineLimits(10_000, None, wait_s=3.0), each_s)
    for number in range(round(200 / each_s)):
        served.arrive(number * each_s / 10)  # for 20 s
    # Until four have left a line that is long nobody can tell; by then fifty have come.
    assert max(served.waits_s) < max(3.0, 50 * each_s) + 2 * each_s
    assert max(served.waits_s[-100:]) < 3.0 + 2 * each_s
    assert len(served.waits_s) > 0.99 * 20 / each_s  # and the server always had work
    served.run_until(99.0)
    assert len(served.waits_s) + served.refused == round(200 / each_s)


def test_the_pace_of_bursts_is_that_of_many_of_them() -> None:
    line = WaitingLine(LineLimits(10_000, None, wait_s=5.0))
    waiting: deque[Place] = deque()
    with ExitStack() as open_:
        waiting += open_.enter_context(line.places([1] * 500, 0.0))
        for second in range(0, 60, 10):  # 80 in a tenth of a second, then none for nearly ten
            for number in range(80):
                waiting.popleft().served(second + number / 800)
        # 20 are left. Behind a burst as well, 8 leave in a second: so 30 wait 2.5 s, 70 nearly 6.
        waiting += open_.enter_context(line.places([1] * 10, 50.2))
        with pytest.raises(Overloaded):
            line.refuse_if_full([1] * 40, 50.2)


def test_a_line_that_is_short_or_comes_at_once_is_let_in() -> None:
    served = Served(LineLimits(256, None, wait_s=1.0), each_s=1.0)
    served.arrive(0.0, prompts=200)  # nothing has left: who knows how fast they will
    for second in range(101, 200):
        served.arrive(second)
    assert served.refused == 184 - 100  # until 15 are left, and then one comes as one leaves
    served.run_until(250.0)
    assert len(served.waits_s) == 200 + 99 - 84
    assert served.line.sequences == 0
