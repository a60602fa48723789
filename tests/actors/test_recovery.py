"""The decisions of a recovery, without any actor."""

from __future__ import annotations

import pytest

from actors.pipeline.recovery import Answer, describe, in_force, losses, obstacle, retry_delay_s
from model.placement import ExpertPlacement, split_evenly

# Two layers of three experts on ranks 2 and 3; expert 1 of layer 1 is on both.
TARGET = ExpertPlacement(4, (((2,), (2,), (3,)), ((3,), (2, 3), (2,))))


def test_a_roll_call_tells_the_dead_from_the_silent() -> None:
    answers: dict[int, Answer] = {0: "alive", 1: "dead", 2: "silent", 3: "alive", 4: "dead"}
    found = losses(answers)
    assert (set(found.dead), set(found.hung)) == ({1, 4}, {2})
    assert set(found.ranks) == {1, 2, 4}


@pytest.mark.parametrize(
    ("answers", "cause"),
    [
        ({0: "alive", 2: "alive"}, "link"),
        ({0: "alive", 2: "silent"}, "hang"),
        ({0: "silent", 2: "dead"}, "death"),
        ({}, "link"),
    ],
)
def test_a_death_outweighs_a_hang(answers: dict[int, Answer], cause: str) -> None:
    assert losses(answers).cause == cause


def test_losses_of_two_roll_calls_are_all_there() -> None:
    both = losses({1: "silent"}).and_also(losses({2: "dead", 3: "alive"}))
    assert (set(both.dead), set(both.hung), both.cause) == ({2}, {1}, "death")


@pytest.mark.parametrize(
    ("attention", "expert", "want"),
    [
        ([0, 1], [2, 3], None),
        ([1], [2, 3], None),
        ([], [2, 3], "no attention actor is left"),
        ([0], [3], "expert 0 of layer 0 and 2 more has no holder left"),
        ([0], [2], "expert 2 of layer 0 and 1 more has no holder left"),
        ([0], [], "expert 0 of layer 0 and 5 more has no holder left"),
    ],
)
def test_who_is_left_serves_if_every_expert_has_a_holder(
    attention: list[int], expert: list[int], want: str | None
) -> None:
    assert obstacle(attention, expert, TARGET) == want


def test_with_a_second_holder_everywhere_one_rank_is_enough() -> None:
    both = ExpertPlacement(1, (((2, 3),) * 3,) * 2)
    assert obstacle([0], [3], both) is None
    assert in_force(both, [3], 7) == ExpertPlacement(7, (((3,),) * 3,) * 2)


def test_colocated_attention_ranks_need_nobody() -> None:
    assert obstacle([1], [], None) is None
    assert obstacle([], [], None) == "no attention actor is left"


def test_the_placement_in_force_is_the_targets_among_those_left() -> None:
    whole = in_force(TARGET, [3, 2], 9)
    assert (whole.version, whole.ranks) == (9, TARGET.ranks)
    assert in_force(split_evenly(2, 3, [2, 3]), [2, 3], 5).held_by(3) == [(0, 2), (1, 2)]


def test_retries_slow_down_and_never_end() -> None:
    delays = [retry_delay_s(failures) for failures in range(1, 12)]
    assert delays[:4] == [0.5, 1.0, 2.0, 4.0]
    assert delays == sorted(delays)
    assert delays[-1] == retry_delay_s(40) == 30.0


def test_an_error_is_described_in_one_line_by_its_cause() -> None:
    class Wrapped(RuntimeError):
        cause = ValueError("layer 3: w1 is short\nand more")

    assert describe(Wrapped("traceback")) == "ValueError: layer 3: w1 is short"
    assert describe(TimeoutError()) == "TimeoutError"
