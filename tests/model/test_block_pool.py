from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.block_pool import BlockPool, OutOfBlocks


def test_every_block_is_given_out_once_and_then_no_more() -> None:
    pool = BlockPool(5)
    assert (pool.num_blocks, pool.num_free, pool.usage) == (5, 5, 0.0)
    first, second = pool.allocate(2), pool.allocate(3)
    assert sorted(first + second) == [0, 1, 2, 3, 4]
    assert (pool.num_free, pool.usage) == (0, 1.0)
    with pytest.raises(OutOfBlocks, match=r"1 blocks asked for, 0 of 5 free"):
        pool.allocate(1)


def test_a_refused_allocation_takes_nothing() -> None:
    pool = BlockPool(3)
    held = pool.allocate(1)
    with pytest.raises(OutOfBlocks):
        pool.allocate(3)
    assert pool.num_free == 2
    pool.check_integrity([held])
    assert sorted(held + pool.allocate(2)) == [0, 1, 2]


def test_freed_blocks_are_given_out_again() -> None:
    pool = BlockPool(2)
    held = pool.allocate(2)
    pool.free([held[0]])
    assert pool.allocate(1) == [held[0]]


def test_allocating_none_and_freeing_none_change_nothing() -> None:
    pool = BlockPool(2)
    assert pool.allocate(0) == []
    pool.free([])
    held = pool.allocate(2)
    assert pool.allocate(0) == []
    pool.check_integrity([held])


def test_double_free_and_foreign_blocks_are_caught() -> None:
    pool = BlockPool(4)
    held = pool.allocate(2)
    pool.free(held)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free([held[0]])
    other = pool.allocate(1)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free([other[0], other[0]])
    for foreign in (-1, 4):
        with pytest.raises(AssertionError, match="does not exist"):
            pool.free([foreign])


def test_integrity_sees_lost_shared_and_unheld_blocks() -> None:
    pool = BlockPool(4)
    held = pool.allocate(2)
    pool.check_integrity([held[:1], [], held[1:]])
    with pytest.raises(AssertionError, match="are not the 4 blocks"):
        pool.check_integrity([held[:1]])  # one is lost
    with pytest.raises(AssertionError, match=r"owners hold .* the pool counts"):
        pool.check_integrity([held, held[:1]])
    with pytest.raises(AssertionError, match="repeats in one of"):
        pool.check_integrity([held + held[:1]])
    free_one = next(b for b in range(4) if b not in held)
    with pytest.raises(AssertionError, match="are not the 4 blocks"):
        pool.check_integrity([held, [free_one]])


@pytest.mark.parametrize("num_blocks", [0, -3])
def test_a_pool_has_blocks(num_blocks: int) -> None:
    with pytest.raises(ValueError, match="num_blocks"):
        BlockPool(num_blocks)


@given(
    num_blocks=st.integers(1, 12),
    moves=st.lists(st.tuples(st.booleans(), st.integers(0, 13)), max_size=60),
)
def test_against_a_set(num_blocks: int, moves: list[tuple[bool, int]]) -> None:
    pool, free = BlockPool(num_blocks), set(range(num_blocks))
    held: list[list[int]] = []
    for takes, n in moves:
        if takes:
            if n > len(free):
                with pytest.raises(OutOfBlocks):
                    pool.allocate(n)
            else:
                got = pool.allocate(n)
                assert len(got) == n == len(set(got)) and set(got) <= free
                free -= set(got)
                held.append(got)
        elif held:
            given_back = held.pop(n % len(held))
            pool.free(given_back)
            free |= set(given_back)
        pool.check_integrity(held)
        assert pool.num_free == len(free)
        assert pool.usage == pytest.approx(1 - len(free) / num_blocks)
