"""Waiting for other actors' answers, for so long and no longer.

With `asyncio.timeout`, since `asyncio.wait_for` of Python 3.11 loses a cancellation that meets the
result it waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def within(timeout_s: float | None, call: Awaitable[T]) -> T:
    """Wait for one call.

    Raises:
        TimeoutError: not within the time (None: any).
    """
    async with asyncio.timeout(timeout_s):
        return await call


async def all_of(calls: Iterable[Awaitable[Any]], timeout_s: float | None = None) -> None:
    """Wait for all calls; the first error is everybody's.

    Raises:
        RayError: of the call that failed first.
        TimeoutError: not all had ended in time.
    """
    async with asyncio.timeout(timeout_s):
        await asyncio.gather(*calls)


def forget(future: asyncio.Future[Any]) -> None:
    """Take note of a result nobody waits for, so that asyncio does not complain of it."""
    if not future.cancelled():
        future.exception()
