"""Changes of a placement by hand: what becomes of it, and every way to be refused."""

from __future__ import annotations

import random
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from actors.placement.placement_change import difference, drop, move, replicate, spread
from actors.placement.placement_messages import ChangeRefused, Drop, Move, Replicate
from actors.placement.rank_loads import rank_loads
from model.placement import ExpertPlacement, split_evenly

RANKS = [2, 3, 4]
# Three layers of four experts. Expert 3 is held by two, one and all of the ranks.
PLACEMENT = ExpertPlacement(
    7,
    (
        ((2,), (2,), (3,), (3, 4)),
        ((2,), (3,), (3,), (4,)),
        ((2,), (4,), (3,), (2, 3, 4)),
    ),
)
NO_LOAD = [[0.0] * 4] * 3
BUSY_4 = [[10.0, 10, 10, 90], [10, 10, 10, 90], [10, 90, 10, 10]]  # rank 4 in every layer

Added = list[tuple[int, int, int]]


def changes(new: ExpertPlacement) -> tuple[Added, Added]:
    assert new.version == 8
    assert all(held == tuple(sorted(set(held))) != () for layer in new.ranks for held in layer)
    added, dropped = difference(PLACEMENT, new)
    return list(added), list(dropped)


@pytest.mark.parametrize(
    ("change", "load", "added"),
    [
        (Replicate(0, layer=1, to=4), NO_LOAD, [(1, 0, 4)]),
        (Replicate(3, to=2), NO_LOAD, [(0, 3, 2), (1, 3, 2)]),  # layer 2 has it already
        (Replicate(0, layer=1), BUSY_4, [(1, 0, 3)]),  # 20 rows against 90
        (Replicate(2, layer=0), [[50.0, 50, 10, 10]] * 3, [(0, 2, 4)]),
        (Replicate(0, layer=0), NO_LOAD, [(0, 0, 4)]),  # which holds one there, 3 holds two
        (Replicate(0), NO_LOAD, [(0, 0, 4), (1, 0, 4), (2, 0, 4)]),  # 4 copies against 6
        (Replicate(0), BUSY_4, [(0, 0, 3), (1, 0, 3), (2, 0, 3)]),
        (Replicate(0), [], [(0, 0, 4), (1, 0, 4), (2, 0, 4)]),  # nothing counted yet
    ],
)
def test_replicate(change: Replicate, load: list[list[float]], added: Added) -> None:
    assert changes(replicate(PLACEMENT, change, RANKS, load)) == (added, [])


@pytest.mark.parametrize(
    ("change", "load", "added", "dropped"),
    [
        (Move(0, layer=1, source=2, to=4), NO_LOAD, [(1, 0, 4)], [(1, 0, 2)]),
        (Move(3, layer=0, to=2), [[0.0, 0, 50, 10]] * 3, [(0, 3, 2)], [(0, 3, 3)]),
        (Move(3, layer=0, source=4), NO_LOAD, [(0, 3, 2)], [(0, 3, 4)]),
        (Move(2), BUSY_4, [(0, 2, 2), (1, 2, 2), (2, 2, 2)], [(0, 2, 3), (1, 2, 3), (2, 2, 3)]),
        # Expert 1 is on 2, 3 and 4: what `source` holds goes, or what each layer's holder has.
        (Move(1, source=3, to=2), NO_LOAD, [(1, 1, 2)], [(1, 1, 3)]),
        (Move(1, to=2), NO_LOAD, [(1, 1, 2), (2, 1, 2)], [(1, 1, 3), (2, 1, 4)]),
    ],
)
def test_move(change: Move, load: list[list[float]], added: Added, dropped: Added) -> None:
    assert changes(move(PLACEMENT, change, RANKS, load)) == (added, dropped)


@pytest.mark.parametrize(
    ("change", "load", "dropped"),
    [
        (Drop(3, layer=2, rank=3), NO_LOAD, [(2, 3, 3)]),
        (Drop(3, layer=2), BUSY_4, [(2, 3, 4)]),
        (Drop(3, layer=0), [[0.0, 0, 50, 10]] * 3, [(0, 3, 3)]),
        (Drop(3, rank=3), NO_LOAD, [(0, 3, 3), (2, 3, 3)]),
        (Drop(3), BUSY_4, [(0, 3, 3), (2, 3, 3)]),  # 4 is the only holder in layer 1
    ],
)
def test_drop(change: Drop, load: list[list[float]], dropped: Added) -> None:
    assert changes(drop(PLACEMENT, change, RANKS, load)) == ([], dropped)


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        (Replicate(4), "expert", "no expert 4: they are 0 to 3"),
        (Replicate(-1), "expert", "no expert -1"),
        (Replicate(0, layer=3), "layer", "no layer 3: they are 0 to 2"),
        (Replicate(0, to=5), "to", "rank 5 is no expert rank in service: those are 2, 3, 4"),
        (Replicate(0, layer=0, to=2), "to", "rank 2 already holds expert 0 of layer 0"),
        (Replicate(0, to=2), "to", "rank 2 already holds expert 0"),
        (Replicate(3, layer=2), "expert", "every rank already holds expert 3 of layer 2"),
        (Move(4), "expert", "no expert 4"),
        (Move(0, layer=-1), "layer", "no layer -1"),
        (Move(0, to=1), "to", "rank 1 is no expert rank"),
        (Move(0, source=1), "from", "rank 1 is no expert rank"),
        (Move(0, source=3), "from", "rank 3 does not hold expert 0"),
        (Move(1, layer=0, source=3), "from", "rank 3 does not hold expert 1 of layer 0"),
        (Move(0, layer=0, to=2), "to", "rank 2 already holds expert 0 of layer 0"),
        (Move(0, source=2, to=2), "to", "rank 2 already holds expert 0"),
        (Move(3, layer=2), "to", "every rank already holds expert 3 of layer 2: nothing to move"),
        (Drop(4), "expert", "no expert 4"),
        (Drop(0, layer=9), "layer", "no layer 9"),
        (Drop(0, rank=9), "rank", "rank 9 is no expert rank"),
        (Drop(0, rank=3), "rank", "rank 3 does not hold expert 0"),
        (Drop(0, layer=1, rank=2), "rank", "rank 2 is the only holder of expert 0 of layer 1"),
        (Drop(3, rank=4), "rank", "rank 4 is the only holder of expert 3 of layer 1"),
        (Drop(0), "expert", "no holder of expert 0 can be spared"),
    ],
)
def test_refusals(change: Replicate | Move | Drop, param: str, message: str) -> None:
    with pytest.raises(ChangeRefused, match=message) as refusal:
        match change:
            case Replicate():
                replicate(PLACEMENT, change, RANKS, NO_LOAD)
            case Move():
                move(PLACEMENT, change, RANKS, NO_LOAD)
            case Drop():
                drop(PLACEMENT, change, RANKS, NO_LOAD)
    assert refusal.value.param == param


def test_a_holder_that_does_not_serve_is_no_holder() -> None:
    with pytest.raises(ChangeRefused, match="only holder"):
        drop(PLACEMENT, Drop(3, layer=0, rank=3), [2, 3], NO_LOAD)
    with pytest.raises(ChangeRefused, match="no holder in service: try again") as refusal:
        replicate(PLACEMENT, Replicate(0), [3, 4], NO_LOAD)
    assert refusal.value.param is None


def test_drop_undoes_replicate_and_move_undoes_move() -> None:
    more = replicate(PLACEMENT, Replicate(2, to=4), RANKS, NO_LOAD)
    assert drop(more, Drop(2, rank=4), RANKS, NO_LOAD).ranks == PLACEMENT.ranks
    moved = move(PLACEMENT, Move(2, to=4), RANKS, NO_LOAD)
    assert move(moved, Move(2, source=4, to=3), RANKS, NO_LOAD).ranks == PLACEMENT.ranks


@pytest.mark.parametrize(
    ("ranks", "slots", "num_added"),
    [
        (range(10, 18), 1, 4),  # 4 to 8: each rank gives one of its two to a new one
        (range(10, 12), 4, 4),  # 4 to 2: those of two ranks that go
        (range(10, 13), 3, 2),  # 4 to 3
        (range(12, 16), 2, 4),  # as many, but half of them new
        (range(10, 14), 2, 0),
    ],
)
def test_spread_over_other_ranks_loads_no_more_than_it_must(
    ranks: range, slots: int, num_added: int
) -> None:
    old = split_evenly(3, 8, range(10, 14))
    new = spread(old, ranks, [], slots)
    added, dropped = difference(old, new)
    assert new.version == 2 and len(added) == 3 * num_added
    assert {rank for _, _, rank in dropped} >= set(range(10, 14)) - set(ranks)
    for layer in new.ranks:
        copies = Counter(rank for held in layer for rank in held)
        assert all(layer) and set(copies) == set(ranks) and max(copies.values()) <= slots


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8, unique=True), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_spread_there_and_back_keeps_every_expert(ranks: list[int], seed: int) -> None:
    rng = random.Random(seed)
    load_LE = [[rng.lognormvariate(5, 0.3) for _ in range(8)] for _ in range(2)]
    start = split_evenly(2, 8, [0, 1, 2, 3])
    there = spread(start, ranks, load_LE, -(-8 // len(ranks)))
    back = spread(there, [0, 1, 2, 3], load_LE, 2)
    for placement, on in ((there, ranks), (back, [0, 1, 2, 3])):
        for layer, load_E in zip(placement.ranks, load_LE):
            assert all(held and set(held) <= set(on) for held in layer)
            slots = -(-8 // len(on))
            heaviest = sum(sorted(load_E)[-slots:])
            assert max(rank_loads(load_E, layer, on).values()) <= heaviest + 1e-6


@pytest.mark.parametrize(("ranks", "slots"), [([], 8), ([1, 2], 3)])
def test_experts_that_do_not_fit_are_refused(ranks: list[int], slots: int) -> None:
    with pytest.raises(ChangeRefused, match="8 experts do not fit") as refusal:
        spread(split_evenly(1, 8, [1, 2]), ranks, [], slots)
    assert refusal.value.param == "expert_actors"
