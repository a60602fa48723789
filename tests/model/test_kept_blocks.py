"""Blocks that are found again by what they hold: shared, kept when free, evicted in order."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.block_pool import BlockPool, OutOfBlocks


def key(name: object) -> bytes:
    return repr(name).encode()


def kept(pool: BlockPool, names: Sequence[object]) -> list[int]:
    """Blocks held by one owner, each registered under a name."""
    held = pool.allocate(len(names))
    for block_id, name in zip(held, names):
        pool.register(block_id, key(name))
    return held


def found(pool: BlockPool, names: str) -> list[bool]:
    return [pool.find(key(name)) is not None for name in names]


def test_a_free_block_is_kept_and_counts_as_free() -> None:
    pool = BlockPool(3)
    held = kept(pool, "ab")
    pool.free(held)
    assert (pool.num_free, pool.usage) == (3, 0.0)
    assert [pool.find(key(name)) for name in "abc"] == [*held, None]
    pool.check_integrity([])


def test_a_kept_block_is_held_by_several_and_free_after_the_last() -> None:
    pool = BlockPool(2)
    (block_id,) = held = kept(pool, "a")
    pool.hold(held)
    assert (pool.num_holders(block_id), pool.num_free) == (2, 1)
    pool.check_integrity([held, held])
    pool.free(held)
    assert (pool.num_holders(block_id), pool.num_free) == (1, 1)
    with pytest.raises(OutOfBlocks):
        pool.allocate(2)
    pool.free(held)
    assert (pool.num_holders(block_id), pool.num_free) == (0, 2)
    pool.hold(held)
    assert (pool.num_free, pool.find(key("a"))) == (1, block_id)
    pool.check_integrity([held])


def test_blocks_without_a_key_go_first_then_the_one_held_longest_ago_tail_before_head() -> None:
    pool = BlockPool(8)
    first, second, blank = kept(pool, "abc"), kept(pool, "xy"), pool.allocate(3)
    pool.free(first)
    pool.free(blank)
    pool.free(second)
    assert set(pool.allocate(3)) == set(blank)
    order = [pool.allocate(1)[0] for _ in range(5)]
    assert order == [*reversed(first), *reversed(second)]
    assert found(pool, "abcxy") == [False] * 5
    pool.check_integrity([blank, first, second])


def test_being_held_again_makes_a_block_recent() -> None:
    pool = BlockPool(3)
    for name in "abc":
        pool.free(kept(pool, name))
    again = pool.find(key("a"))
    assert again is not None
    pool.hold([again])
    pool.free([again])
    pool.allocate(1)
    assert found(pool, "abc") == [True, False, True]


def test_the_first_to_register_a_key_keeps_it() -> None:
    pool = BlockPool(2)
    first, second = kept(pool, "a"), kept(pool, "a")
    pool.free(first)
    pool.free(second)
    assert pool.find(key("a")) == first[0]
    assert pool.allocate(1) == second  # it has no key, though it was held later
    pool.check_integrity([second])


def test_forgotten_blocks_stay_with_their_owners_and_are_found_no_more() -> None:
    pool = BlockPool(4)
    held, free = kept(pool, "ab"), kept(pool, "cd")
    pool.free(free)
    pool.forget([held[0], free[0]])
    assert found(pool, "abcd") == [False, True, False, True]
    assert pool.num_free == 2
    pool.check_integrity([held])
    assert pool.allocate(1) == [free[0]]  # as if it had never been kept
    pool.forget_all()
    assert found(pool, "abcd") == [False] * 4
    pool.check_integrity([held, free[:1]])


def test_misuse_is_caught() -> None:
    pool = BlockPool(3)
    with pytest.raises(AssertionError, match="block 0 is free"):
        pool.register(0, key("a"))
    (block_id,) = pool.allocate(1)
    with pytest.raises(AssertionError, match="not found by a key"):
        pool.hold([block_id])
    pool.register(block_id, key("a"))
    pool.register(block_id, key("a"))
    with pytest.raises(AssertionError, match="another key"):
        pool.register(block_id, key("b"))
    pool.free([block_id])
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free([block_id])


class PoolMachine(RuleBasedStateMachine):
    """Any order of calls beside a pool made of plain lists, searched from end to end."""

    @initialize(num_blocks=st.integers(1, 7))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.owners: list[list[int]] = []
        self.holds: dict[int, str] = {}  # block -> the name it is found by
        self.freed: list[int] = []  # as blocks became free, the latest last

    @property
    def free(self) -> set[int]:
        return set(range(self.pool.num_blocks)).difference(*self.owners)

    @rule(n=st.integers(0, 5))
    def allocate(self, n: int) -> None:
        free, before = self.free, dict(self.holds)
        if n > len(free):
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(n)
            return
        taken = self.pool.allocate(n)
        assert len(set(taken)) == n and set(taken) <= free
        blank = [b for b in free if b not in before]
        oldest = [b for b in self.freed if b in free and b in before]
        evicted = oldest[: max(0, n - len(blank))]
        assert [b for b in taken if b in before] == evicted
        for block_id in evicted:
            del self.holds[block_id]
        self.owners.append(taken)

    @rule(name=st.sampled_from("abcdef"), owner=st.integers(0, 9), index=st.integers(0, 9))
    def register(self, name: str, owner: int, index: int) -> None:
        held = self.owners[owner % len(self.owners)] if self.owners else []
        if held and held[index % len(held)] not in self.holds:
            block_id = held[index % len(held)]
            self.pool.register(block_id, key(name))
            if name not in self.holds.values():
                self.holds[block_id] = name

    @rule(names=st.lists(st.sampled_from("abcdef"), unique=True, max_size=4))
    def find(self, names: list[str]) -> None:
        blocks = []
        for name in names:
            want = [b for b, held in self.holds.items() if held == name]
            got = self.pool.find(key(name))
            assert got == (want[0] if want else None)
            if got is not None:
                blocks.append(got)
        self.pool.hold(blocks)
        self.owners.append(blocks)

    @precondition(lambda self: self.owners)
    @rule(owner=st.integers(0, 9))
    def give_back(self, owner: int) -> None:
        blocks = self.owners.pop(owner % len(self.owners))
        self.pool.free(blocks)
        for block_id in reversed(blocks):
            if block_id in self.free:
                self.freed = [b for b in self.freed if b != block_id] + [block_id]

    @rule(blocks=st.sets(st.integers(0, 6)))
    def forget(self, blocks: set[int]) -> None:
        blocks = {b for b in blocks if b < self.pool.num_blocks}
        self.pool.forget(blocks)
        self.holds = {b: name for b, name in self.holds.items() if b not in blocks}

    @rule()
    def forget_all(self) -> None:
        self.pool.forget_all()
        self.holds.clear()

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check_integrity(self.owners)
            assert self.pool.num_free == len(self.free)
            assert {b: self.pool.key_of(b) for b in self.holds} == {
                b: key(name) for b, name in self.holds.items()
            }


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
