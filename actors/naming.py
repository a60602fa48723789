"""How the actors of an application find each other: names in Ray, within a namespace of its own."""

from __future__ import annotations


def actor_name(pipeline: str, role: str, rank: int, spawned: int) -> str:
    """The name other processes find an actor by; `spawned` tells it from those it replaced."""
    return f"{pipeline}/{role}/{rank}/{spawned}"


def namespace_of(application: str) -> str:
    """Where one Serve application's actors have their names."""
    return f"windrose-{application}"
