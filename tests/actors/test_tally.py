"""Counts of many processes: nothing is lost, repeated or taken back, however the word travels."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from actors.metrics.histogram import Histogram
from actors.metrics.tally import Series, Succession, Tally, Value, added, joined

SOURCES, SERIES = ("a", "b", "c"), (("x",), ("y", "1"))

versions = st.lists(st.integers(0, 5), min_size=2, max_size=2)
tallies = st.dictionaries(
    st.sampled_from(SOURCES),
    st.fixed_dictionaries({}, optional={s: versions.map(tuple) for s in SERIES}),
)


@given(tallies, tallies, tallies)
def test_joining_is_indifferent_to_order_and_repetition(a: Tally, b: Tally, c: Tally) -> None:
    assert joined([a, b, c]) == joined([c, b, a]) == joined([joined([a, b]), joined([b, c])])
    assert joined([a, a]) == joined([a])


events = st.lists(
    st.one_of(
        st.tuples(st.just("count"), st.integers(0, 2), st.integers(1, 9)),
        st.tuples(st.just("tell"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.just("scrape"), st.integers(0, 2), st.just(0)),
    ),
    max_size=40,
)


@given(events)
def test_whoever_is_asked_nothing_goes_backwards(script: list[tuple[str, int, int]]) -> None:
    """Three processes count, tell each other, and are asked: one that answers has asked all."""
    known: list[Tally] = [{}, {}, {}]
    counted: Counter[int] = Counter()
    shown = 0.0

    def own(i: int) -> Tally:
        return {SOURCES[i]: {("x",): (float(counted[i]),)}}

    for what, i, j in script:
        if what == "count":
            counted[i] += j
        elif what == "tell":
            known[j] = joined([known[i], known[j], own(i)])
        else:
            answers = [joined([known[k], known[i], own(k)]) for k in range(3)]
            known = list(answers)
            known[i] = joined(answers)
            total = added(known[i].values())["x",][0]
            assert total == sum(counted.values()) >= shown
            shown = total


@given(events, st.integers(0, 2))
def test_what_was_told_outlives_its_source(script: list[tuple[str, int, int]], dead: int) -> None:
    known: list[Tally] = [{}, {}, {}]
    told = 0.0
    counted: Counter[int] = Counter()
    for what, i, j in script:
        if what == "count":
            counted[i] += j
        elif what == "tell" and i == dead != j:
            known[j] = joined([known[j], {SOURCES[i]: {("x",): (float(counted[i]),)}}])
            told = max(told, float(counted[i]))
    left = joined(known[i] for i in range(3) if i != dead)
    assert added(left.values()).get(("x",), (0.0,)) == (told,)


@given(st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.integers(0, 9)), max_size=30))
def test_a_place_goes_on_where_its_last_holder_was_heard(
    script: list[tuple[int, bool, int]],
) -> None:
    """Holders of two places count, are heard, and are replaced by ones that begin at zero."""
    succession, generation, counted = Succession(), [0, 0], [0, 0]
    heard_in_all, shown = [0, 0], 0.0
    for place, dies, amount in script:
        if dies:
            generation[place] += 1
            counted[place] = 0
            heard_in_all[place] += amount
        else:
            heard_in_all[place] += amount
        counted[place] += amount
        counts: dict[Series, Value] = {("x",): (float(counted[place]),)}
        succession.take(place, f"{place}/{generation[place]}", counts)
        total = succession.counts()["x",][0]
        assert total == sum(heard_in_all) >= shown
        shown = total


def test_an_answer_that_was_overtaken_takes_nothing_back() -> None:
    succession = Succession()
    for heard in (5.0, 3.0, 6.0):
        succession.take(0, "first", {("x",): (heard,)})
    succession.take(0, "second", {("x",): (1.0,)})
    assert succession.counts() == {("x",): (7.0,)}
    succession.take(0, "first", {("x",): (6.0,)})  # on its way when it died
    succession.take(0, "second", {("x",): (3.0,)})
    assert succession.counts() == {("x",): (9.0,)}
    succession.take(1, "first", {("x",): (4.0,)})
    succession.take(0, "third", {("x",): (1.0,)})
    assert succession.counts() == {("x",): (14.0,)}


@given(st.lists(st.floats(0.0, 10.0)))
def test_histograms_count_as_a_scan_would(values: list[float]) -> None:
    histogram = Histogram((0.5, 1.0, 4.0))
    for value in values:
        histogram.observe(value)
    edges = (-1.0, 0.5, 1.0, 4.0, 1e9)
    want = [sum(low < v <= high for v in values) for low, high in pairwise(edges)]
    *counts, total = histogram.value
    assert counts == want
    assert total == sum(values)
