"""Which pipeline an ingress sends a request to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from actors.messages import GenerateRequest
from actors.pipeline.assignment import Assigner
from actors.pipeline.pipeline_choice import PipelineChoice, fits
from model.sampling_params import SamplingParams
from tests.actors.reports import report


def asking(prompt: Sequence[int], max_tokens: int = 4, weights: str = "") -> GenerateRequest:
    params = SamplingParams(max_tokens, seed=0)
    return GenerateRequest("r", "ingress", tuple(prompt), params, weights=weights)


def knowing(*reports: Any, max_keys: int = 99) -> PipelineChoice:
    choice = PipelineChoice(Assigner(2, max_keys))
    choice.look(reports, 0.0)
    return choice


def test_the_longest_beginning_decides_then_the_load() -> None:
    choice = knowing(report("w-a", unfinished=1), report("w-b"))
    assert choice.choose(asking([1, 1, 2, 2])) == "w-b"
    assert choice.choose(asking([5, 5])) == "w-a"
    assert choice.choose(asking([1, 1, 2, 2, 3])) == "w-b"
    assert choice.choose(asking([5, 5, 5, 5])) == "w-a"


def test_an_overloaded_one_is_passed_over() -> None:
    choice = knowing(report("w-a"), report("w-b"))
    assert choice.choose(asking([1, 1])) == "w-a"
    choice.look([report("w-a", unfinished=9), report("w-b", unfinished=1)], 1.0)
    assert choice.choose(asking([1, 1])) == "w-b"


def test_one_that_is_silent_for_a_look_is_still_known_by_what_it_was_sent() -> None:
    choice = knowing(report("w-a"), report("w-b", unfinished=1))
    assert choice.choose(asking([1, 1])) == "w-a"
    choice.look([report("w-b")], 1.0)
    assert choice.choose(asking([2, 2])) == "w-b"
    choice.look([report("w-a", unfinished=1), report("w-b")], 2.0)
    assert choice.choose(asking([1, 1])) == "w-a"
    choice.look([report("w-b")], 70.0)
    choice.look([report("w-a", unfinished=1), report("w-b")], 71.0)
    assert choice.choose(asking([1, 1])) == "w-b", "it was gone for long"


def test_outcasts_are_those_that_a_serving_pipeline_is_without() -> None:
    here = ("w-a/attention/0", "w-a/attention/3")
    choice = knowing(report("w-a", attention=here), report("w-b", serving=False))
    assert choice.outcasts(["w-a/attention/1", *here, "w-b/attention/0", "w-c/attention/0"]) == {
        "w-a/attention/1"
    }


def test_past_the_router_only_where_nothing_is_left_to_choose() -> None:
    for serving, planned, there, sole in (
        (True, 1, ("w-a/attention/2",), "w-a/attention/2"),
        (True, 1, (), None),
        (True, 2, ("w-a/attention/2",), None),
        (False, 1, ("w-a/attention/2",), None),
    ):
        choice = knowing(report("w-a", serving=serving, num_attention=planned, attention=there))
        assert choice.sole_attention("w-a") == sole
        assert choice.sole_attention("w-b") is None and choice.sole_attention(None) is None


def test_what_was_sent_since_the_last_look_counts() -> None:
    choice = knowing(report("w-a", unfinished=2), report("w-b"), max_keys=0)
    chosen = [choice.choose(asking([1])) for _ in range(6)]
    assert (chosen.count("w-a"), chosen.count("w-b")) == (2, 4)


def test_what_ended_since_the_last_look_counts_no_more() -> None:
    choice = knowing(report("w-a"), report("w-b", unfinished=2), max_keys=0)
    assert [choice.choose(asking([1])) for _ in range(2)] == ["w-a"] * 2
    for _ in range(2):
        choice.ended("w-b")
    choice.ended("w-gone")
    assert [choice.choose(asking([1])) for _ in range(2)] == ["w-b"] * 2


def test_one_that_recovers_gets_requests_only_where_none_serves() -> None:
    choice = knowing(report("w-a", serving=False), report("w-b", unfinished=50))
    assert choice.choose(asking([1])) == "w-b"
    choice.look([report("w-a", serving=False)], 1.0)
    assert choice.choose(asking([1])) == "w-a"


def test_an_answer_goes_on_only_with_the_weights_that_began_it() -> None:
    choice = knowing(report("old-a", unfinished=9), report("new-b"))
    assert choice.choose(asking([1], weights="old")) == "old-a"
    assert choice.choose(asking([1])) == "new-b"
    choice.look([report("new-b")], 1.0)
    assert choice.choose(asking([1], weights="old")) is None


def test_weights_that_are_gone_are_missed_only_while_others_are_there() -> None:
    choice = knowing(report("old-a"))
    choice.look([], 5.0)  # nobody answers: nothing is known
    assert not choice.knows_any
    assert choice.absent_s("old", 9.0) == 0.0
    choice.look([report("new-b")], 10.0)
    assert choice.knows_any
    assert choice.absent_s("old", 12.0) == 12.0
    assert choice.absent_s("new", 12.0) == 0.0
    assert choice.absent_s("never seen", 12.0) == 0.0
    assert choice.absent_s("never seen", 15.0) == 3.0


def test_a_request_goes_where_it_has_room() -> None:
    choice = knowing(report("w-a", max_model_len=8), report("w-b", unfinished=30))
    assert choice.choose(asking([1, 2, 3], max_tokens=5)) == "w-a"
    assert choice.choose(asking([1, 2, 3], max_tokens=6)) == "w-b"
    assert choice.choose(asking([1, 2, 3], max_tokens=62)) is None
    assert fits(asking([1, 2, 3], max_tokens=61), "w-b", 64)


NAMES = st.lists(st.sampled_from(["x-1", "x-2", "y-1", "y-2"]), unique=True)


@given(st.lists(st.tuples(NAMES, st.sampled_from(["", "x", "y"]), st.booleans())))
def test_never_with_other_weights_and_never_to_one_that_is_gone(
    turns: list[tuple[list[str], str, bool]],
) -> None:
    choice = knowing()
    for now, (names, weights, serving) in enumerate(turns):
        choice.look([report(name, serving=serving) for name in names], float(now))
        able = {name for name in names if name.startswith(weights)}
        chosen = choice.choose(asking([1, 2, 3], weights=weights))
        assert chosen in able if able else chosen is None
