"""Keys of blocks: equal exactly where all tokens up to the block's end are."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.block_keys import DIGEST_BYTES, block_key, extend_keys

SMALL = st.lists(st.integers(0, 2), min_size=0, max_size=9)


def keys_of(token_ids: Sequence[int], block_size: int) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, token_ids, block_size, len(token_ids) // block_size)
    return keys


def test_a_key_is_a_digest_of_all_tokens_before_and_in_the_block() -> None:
    first = hashlib.blake2b(struct.pack("2q", 7, 31999), digest_size=DIGEST_BYTES).digest()
    second = first + struct.pack("2q", 0, 1 << 40)
    want = [first, hashlib.blake2b(second, digest_size=DIGEST_BYTES).digest()]
    assert keys_of([7, 31999, 0, 1 << 40, 5], 2) == want


@given(SMALL, SMALL, st.integers(1, 3))
def test_keys_are_equal_exactly_where_prefixes_are(a: list[int], b: list[int], size: int) -> None:
    for i, one in enumerate(keys_of(a, size)):
        for j, other in enumerate(keys_of(b, size)):
            assert (one == other) == (a[: (i + 1) * size] == b[: (j + 1) * size])


@given(st.lists(st.integers(0, 40000), min_size=1, max_size=40), st.integers(1, 5), st.data())
def test_keys_made_in_parts_are_the_same(tokens: list[int], size: int, data: st.DataObject) -> None:
    keys: list[bytes] = []
    for num_blocks in sorted(data.draw(st.lists(st.integers(0, len(tokens) // size)))):
        made = list(keys)
        extend_keys(keys, tokens, size, num_blocks)
        assert len(keys) == num_blocks and keys[: len(made)] == made
    assert keys == keys_of(tokens, size)[: len(keys)]


def test_a_block_that_is_not_full_has_no_key() -> None:
    with pytest.raises(AssertionError, match="block 1 of 5 tokens is not full"):
        extend_keys([], [1, 2, 3, 4, 5], 3, 2)


def test_the_parent_counts() -> None:
    assert len({block_key(parent, [1, 2]) for parent in (b"", bytes(32), bytes(31) + b"\1")}) == 3
