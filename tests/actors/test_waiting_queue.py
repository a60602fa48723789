"""The order of those that wait, against a plain sorted list."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from actors.messages import GenerateRequest
from actors.scheduling.sequence import RunningSequence
from actors.scheduling.waiting_queue import WaitingQueue
from model.sampling_params import SamplingParams


def waiting(number: int, priority: int = 0, arrival_s: float = 0.0) -> RunningSequence:
    params = SamplingParams(max_tokens=1, seed=0)
    request = GenerateRequest(
        f"r{number}", "ingress", (1,), params, arrival_s=arrival_s, priority=priority
    )
    return RunningSequence.of(request, number, frozenset(), 64)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(-2, 2), st.sampled_from([0.0, 1.5, 2.5])),
            st.integers(0, 30),
        ),
        max_size=60,
    )
)
def test_it_is_a_sorted_list_that_forgets_whom_it_is_told_to(
    actions: list[tuple[int, float] | int],
) -> None:
    queue = WaitingQueue()
    model: list[tuple[int, float, int]] = []
    for number, action in enumerate(actions):
        if isinstance(action, tuple):
            queue.add(waiting(number, *action))
            model.append((*action, number))
        else:
            gone = [turn for turn in model if turn[2] == action]
            assert queue.remove(f"r{action}") == bool(gone)
            model = [turn for turn in model if turn not in gone]
        queue.check_integrity()
        assert [one.turn for one in queue] == sorted(model)
        assert len(queue) == len(model)
        first = queue.first
        assert (first.turn if first else None) == min(model, default=None)


def test_nobody_waits_twice() -> None:
    queue = WaitingQueue()
    queue.add(waiting(1))
    with pytest.raises(AssertionError, match="r1"):
        queue.add(waiting(1))
