from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.stop_strings import StopStrings

SHORT = st.text(alphabet="ab", min_size=1, max_size=5)
STOPS = st.lists(SHORT, max_size=4)
CHUNKS = st.lists(st.text(alphabet="abc", max_size=6), max_size=12)


def expected_cut(text: str, stop: list[str]) -> tuple[int, int] | None:
    """Start and end of the match that is complete first, the longest of those; by brute force."""
    for end in range(1, len(text) + 1):
        lengths = [len(s) for s in stop if text[:end].endswith(s)]
        if lengths:
            return end - max(lengths), end
    return None


def expected_held(text: str, stop: list[str]) -> int:
    """Length of the longest suffix of `text` that a stop string may begin with."""
    prefixes = [s[:n] for s in stop for n in range(1, len(s))]
    return max((len(p) for p in prefixes if text.endswith(p)), default=0)


@given(stop=STOPS, chunks=CHUNKS, include_stop=st.booleans())
@settings(max_examples=500, deadline=None)
def test_equals_brute_force_chunk_by_chunk(
    stop: list[str], chunks: list[str], include_stop: bool
) -> None:
    watcher = StopStrings(stop, include_stop=include_stop)
    shown, seen = "", ""
    for chunk in chunks:
        seen += chunk
        delta, hit = watcher.push(chunk)
        shown += delta
        cut = expected_cut(seen, stop)
        assert hit == (cut is not None)
        if cut is not None:
            assert shown == seen[: cut[include_stop]]
        else:
            assert shown == seen[: len(seen) - expected_held(seen, stop)]
    cut = expected_cut(seen, stop)
    shown += watcher.finish()
    assert shown == (seen if cut is None else seen[: cut[include_stop]])


def test_a_stop_string_over_many_chunks() -> None:
    watcher = StopStrings(["\n\nUser:"])
    chunks = ["Fine.", "\n", "\nUs", "er", ": no"]
    assert [watcher.push(chunk) for chunk in chunks] == [
        ("Fine.", False),
        ("", False),
        ("", False),
        ("", False),
        ("", True),
    ]
    assert watcher.push("more") == ("", True)
    assert watcher.finish() == ""


def test_a_false_start_is_released() -> None:
    watcher = StopStrings(["STOP", "END"])
    assert watcher.push("a ST") == ("a ", False)
    assert watcher.push("EN") == ("ST", False)
    assert watcher.push("ERGY") == ("ENERGY", False)
    assert watcher.push("the E") == ("the ", False)
    assert watcher.finish() == "E"


@pytest.mark.parametrize("order", list(itertools.permutations(["abcd", "bc", "c"])))
def test_the_match_that_ends_first_wins_then_the_longest(order: tuple[str, ...]) -> None:
    assert StopStrings(order).push("xabcd") == ("xa", True)
    assert StopStrings(order, include_stop=True).push("xabcd") == ("xabc", True)


def test_without_stop_strings_all_text_passes() -> None:
    watcher = StopStrings([])
    assert watcher.push("anything") == ("anything", False)
    assert watcher.finish() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="stop string must not be empty"):
        StopStrings(["a", ""])
