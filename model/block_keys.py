"""What a full block of a sequence is known by: its tokens and all tokens before them.

A key is a cryptographic digest, so two different prefixes never share one, not even on purpose:
whoever finds a key in a cache may use what is stored under it without comparing the tokens.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

DIGEST_BYTES = 32  # half of its bits stand against collisions


def block_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The key of a block with these tokens behind the block of key `parent` (b"": the first)."""
    data = parent + array("q", token_ids).tobytes()
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def extend_keys(
    keys: list[bytes], token_ids: Sequence[int], block_size: int, num_blocks: int
) -> None:
    """Append to a sequence's `keys` those missing up to `num_blocks`; the others are not redone."""
    for index in range(len(keys), num_blocks):
        block = token_ids[index * block_size : (index + 1) * block_size]
        assert len(block) == block_size, f"block {index} of {len(token_ids)} tokens is not full"
        keys.append(block_key(keys[-1] if keys else b"", block))
