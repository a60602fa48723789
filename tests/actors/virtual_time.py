"""Running asyncio code on a clock that jumps: a test of timeouts takes no time."""

from __future__ import annotations

import asyncio
import gc
import selectors
from collections.abc import Callable, Coroutine
from types import NoneType, SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Instead of waiting it sets the clock forward."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """Raises AssertionError where all wait for something that never comes."""
        assert timeout is not None, "all wait for something that never comes"
        self.now_s += timeout
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = _Selector()
        super().__init__(self.clock)

    def time(self) -> float:
        """Virtual seconds since the loop began."""
        return self.clock.now_s

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        """Do it here and now: threads know nothing of this clock."""
        future = self.create_future()
        future.set_result(func(*args))
        return future


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time; `time.monotonic` of the modules that ask it is the same.

    Raises:
        AssertionError: all wait for ever, or a task ended with an error nobody asked for.
    """
    lost: list[str] = []
    with asyncio.Runner(loop_factory=_Loop) as runner:
        loop = runner.get_loop()

        def note(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if not isinstance(context.get("exception"), NoneType | asyncio.CancelledError):
                lost.append(f"{context['message']}: {context['exception']!r}")

        loop.set_exception_handler(note)
        clock = SimpleNamespace(monotonic=loop.time, time=loop.time)
        with (
            mock.patch("actors.pipeline.pulse.time", clock),
            mock.patch("actors.pipeline.balance_watch.time", clock),
            mock.patch("actors.pipeline.pipeline.time", clock),
            mock.patch("actors.pipeline.intake.time", clock),
        ):
            result = runner.run(work)
    gc.collect(1)  # a task's error is told when nothing refers to the task any more
    assert not lost, f"nobody asked for these: {lost}"
    return result


async def until(condition: Callable[[], bool], within_s: float = 600.0) -> None:
    """Wait in virtual time until something holds.

    Raises:
        TimeoutError: it does not within `within_s`.
    """
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


async def turns(count: int = 50) -> None:
    """Let everything happen that needs no time."""
    for _ in range(count):
        await asyncio.sleep(0)
