"""Which attention actor gets a request: by load, and by what it was sent before."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.messages import GenerateRequest
from actors.pipeline.assignment import Assigner
from model.sampling_params import SamplingParams

PARAMS = SamplingParams(4, seed=0)


def make_requests(*prompts: Sequence[int]) -> list[GenerateRequest]:
    return [GenerateRequest("r", "ingress", tuple(prompt), PARAMS) for prompt in prompts]


def sent(assigner: Assigner, prompt: Sequence[int], **unfinished: int) -> str:
    """Where one request goes."""
    (name,) = assigner.assign(make_requests(prompt), unfinished)
    return name


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
    loads = {str(index): load for index, load in enumerate(unfinished)}
    before = dict(loads)
    requests = make_requests(*[[1, 2, 3]] * num_requests)  # no block of four to know them by
    assert Assigner(4).assign(requests, loads) == [str(index) for index in want]
    assert loads == before


@given(st.integers(0, 40), st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_without_memory_no_actor_that_got_one_has_two_more_than_another(
    num_requests: int, unfinished: list[int]
) -> None:
    loads = {str(index): load for index, load in enumerate(unfinished)}
    chosen = Assigner(1, max_keys=0).assign(make_requests(*[[1, 2]] * num_requests), loads)
    assert len(chosen) == num_requests
    after = {name: load + chosen.count(name) for name, load in loads.items()}
    for name in chosen:
        assert after[name] <= min(after.values()) + 1


def test_a_conversation_goes_where_its_longest_beginning_is() -> None:
    assigner = Assigner(2)
    assert sent(assigner, [1, 1, 2, 2], a=0, b=1) == "a"
    assert sent(assigner, [1, 1, 3, 3, 4], a=5, b=0) == "b"
    for prompt, name in [
        ([1, 1, 2, 2, 9, 9], "a"),
        ([1, 1, 3, 3, 9, 9], "b"),
        ([1, 1, 3, 3], "b"),
        ([1, 1, 9, 9], "b"),  # both know as much: the one with fewer
        ([9, 1, 2, 2], "b"),  # another beginning
        ([1], "b"),
    ]:
        assert sent(assigner, prompt, a=2, b=1) == name, prompt


def test_what_came_with_a_resubmission_counts_too() -> None:
    assigner = Assigner(2)
    assert sent(assigner, [1, 1, 2, 2], a=0, b=0) == "a"
    assert sent(assigner, [1, 1, 3, 3], a=1, b=0) == "a"
    assert sent(assigner, [1, 1, 2, 2, 3, 3], a=4, b=0) == "b"
    (again,) = make_requests([1, 1])
    with_outputs = GenerateRequest("r", "ingress", (1, 1), PARAMS, (2, 2, 3, 3))
    assert assigner.assign([again, with_outputs], {"a": 1, "b": 2}) == ["a", "b"]


@pytest.mark.parametrize(
    ("holder", "least", "goes"),
    [(2, 0, "a"), (3, 0, "b"), (12, 8, "a"), (13, 8, "b"), (52, 40, "a"), (53, 40, "b")],
)
def test_an_overloaded_actor_is_passed_over(holder: int, least: int, goes: str) -> None:
    assigner = Assigner(2)
    assert sent(assigner, [1, 1, 2, 2], a=0, b=0, c=0) == "a"
    assert sent(assigner, [1, 1, 2, 2], a=holder, b=least, c=least + 1) == goes


def test_together_they_do_not_crowd_one_actor() -> None:
    loads = dict.fromkeys("abcd", 0)
    chosen = Assigner(2).assign(make_requests(*[[1, 1, 2, 2]] * 64), loads)
    counts = [chosen.count(name) for name in loads]
    assert max(counts) <= 3 + 1.25 * min(counts)
    assert chosen[:3] == ["a"] * 3


def test_an_actor_that_is_gone_is_forgotten() -> None:
    assigner = Assigner(2)
    assert sent(assigner, [1, 1, 2, 2], a=0, b=0) == "a"
    assert sent(assigner, [5, 5], b=0, c=0) == "b"
    assert sent(assigner, [1, 1, 2, 2], a=1, b=0, c=0) == "b"


def test_the_tail_of_the_oldest_is_forgotten_first() -> None:
    assigner = Assigner(1, max_keys=5)
    assert sent(assigner, [1, 2, 3], a=0, b=1) == "a"
    assert sent(assigner, [7, 8, 9], a=0, b=1) == "a"  # six keys: that of [1, 2, 3] goes
    assert sent(assigner, [1, 2], a=2, b=0) == "a"
    assert sent(assigner, [1, 2], a=5, b=0) == "b"  # a is overloaded; now both know [1, 2]
    assert sent(assigner, [1, 2, 3], a=1, b=0) == "b"


def test_what_is_sent_again_is_remembered_for_longer() -> None:
    assigner = Assigner(1, max_keys=4)
    for prompt in ([1, 2], [3, 4], [1, 2], [5, 6]):
        assert sent(assigner, prompt, a=0, b=3) == "a"
    assert sent(assigner, [1, 2], a=2, b=0) == "a"
    assert sent(assigner, [3, 4], a=2, b=0) == "b"


def test_one_actor_alone_costs_no_hash() -> None:
    assigner = Assigner(2)
    with mock.patch("actors.pipeline.assignment.extend_keys", side_effect=AssertionError):
        assert assigner.assign(make_requests(*[[1] * 1000] * 3), {"a": 9}) == ["a"] * 3


PROMPTS = st.lists(st.integers(0, 1), max_size=7)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.lists(PROMPTS, max_size=3), st.lists(st.integers(0, 9), min_size=3))),
    st.integers(1, 3),
)
def test_against_prompts_compared_token_by_token(
    calls: list[tuple[list[list[int]], list[int]]], size: int
) -> None:
    assigner = Assigner(size)
    history: dict[str, list[list[int]]] = {"a": [], "b": [], "c": []}

    def known(name: str, prompt: list[int]) -> int:
        lengths = range(0, len(prompt) + 1, size)
        alike = (n for old in history[name] for n in lengths if prompt[:n] == old[:n])
        return max(alike, default=0)

    for prompts, unfinished in calls:
        loads = dict(zip("abc", unfinished))
        for prompt, name in zip(prompts, assigner.assign(make_requests(*prompts), dict(loads))):
            room = [one for one in loads if loads[one] <= 2 + 1.25 * min(loads.values())]
            best = max(known(one, prompt) for one in room)
            tied = [one for one in room if known(one, prompt) == best]
            assert name == min(tied, key=lambda one: (loads[one], one))
            history[name].append(prompt)
            loads[name] += 1
