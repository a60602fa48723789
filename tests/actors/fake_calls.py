"""Calls of fake actors' methods, as Ray makes them and as a test may hold them back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ray.exceptions import RayTaskError

if TYPE_CHECKING:
    from tests.actors.fake_actors import FakeActor

HELD = "held"  # as a mode: calls wait until the test releases or fails them

Mode = str | Exception


def task_error(cause: Exception) -> Exception:
    """What Ray raises at the caller where a method raised `cause`."""
    return cast(Exception, RayTaskError("method", "Traceback", cause).as_instanceof_cause())


@dataclass(eq=False)
class Call:
    actor: FakeActor
    method: str
    args: tuple[Any, ...]
    future: asyncio.Future[Any]


class _Method:
    def __init__(self, actor: FakeActor, name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        return self._actor.call(self._name, args)


class Handle:  # as Ray's
    def __init__(self, actor: FakeActor) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> _Method:
        return _Method(self.actor, name)
