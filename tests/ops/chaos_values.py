"""Actors and strikes as values, for the tests of chaos."""

from __future__ import annotations

from ops.chaos.strike import Actor, Reach, Signal, Strike


def actor(role: str, rank: int, pid: int = 0, phase: str = "serving") -> Actor:
    return Actor(role, "p", rank, pid or 1000 + rank, phase)


ACTORS = (
    actor("attention", 0),
    actor("attention", 1),
    actor("expert", 2),
    actor("expert", 3),
    actor("router", 0, pid=900),
)


def struck(
    at_s: float, over_s: float | None, *victims: Actor, how: Signal = "kill", every: bool = False
) -> Strike:
    reach: Reach = "all" if every else "two" if len(victims) > 1 else "one"
    return Strike(at_s, how, reach, victims, over_s)
