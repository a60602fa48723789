"""How the actors of an application find each other: names in Ray, within a namespace of its own."""

from __future__ import annotations


def actor_name(pipeline: str, kind: str, spawned: int) -> str:
    """The name other processes find an actor by; `spawned` tells it from all of its pipeline."""
    return f"{pipeline}/{kind}/{spawned}"


def pipeline_of(name: str) -> str:
    """The pipeline of an actor with this name."""
    return name.split("/", 1)[0]


def namespace_of(application: str) -> str:
    """Where one Serve application's actors have their names."""
    return f"windrose-{application}"
