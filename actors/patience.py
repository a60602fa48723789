"""Waiting for what happens elsewhere, for so long and no longer.

With `asyncio.timeout`, since `asyncio.wait_for` of Python 3.11 loses a cancellation that meets the
result it waits for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextvars import Context
from typing import Any, TypeVar, cast

T = TypeVar("T")


async def within(timeout_s: float | None, call: Awaitable[T]) -> T:
    """Wait for one call.

    Raises:
        TimeoutError: not within the time (None: any).
    """
    async with asyncio.timeout(timeout_s):
        return await call


async def as_long_as(holds: Callable[[], bool], every_s: float, call: Awaitable[T]) -> T:
    """Wait for one call while something holds, which is looked at every so many seconds.

    Raises:
        TimeoutError: it holds no more.
    """
    asked = asyncio.ensure_future(call)
    try:
        while not asked.done():
            await asyncio.wait({asked}, timeout=every_s)
            if not asked.done() and not holds():
                raise TimeoutError
        return asked.result()
    finally:
        asked.cancel()


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


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Run blocking work in a thread that may be given up: a slow one blocks no pool and no exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(cast(T, result))
        else:
            future.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, daemon=True).start()
    return await future


def start_apart(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start what belongs to no request in particular, though one may have occasioned it.

    Serve keeps the request it is in as a context variable, gives all calls that are made there
    its id, and cancels them with it: of two calls at once one would never be sent.
    """
    return asyncio.get_running_loop().create_task(work, context=Context())
