"""How the actors of an application find each other: names in Ray, within a namespace of its own."""

from __future__ import annotations


def pipeline_name(weights: str, replica: str) -> str:
    """The name of the pipeline that a Serve replica owns; `request_router.py` reads it."""
    return f"{weights}-{replica}"


def weights_of(name: str) -> str:
    """The weights that a pipeline serves, or an actor by its name: equal ones, equal answers."""
    return pipeline_of(name).partition("-")[0]


def actor_name(pipeline: str, kind: str, spawned: int) -> str:
    """The name other processes find an actor by; `spawned` tells it from all of its pipeline."""
    return f"{pipeline}/{kind}/{spawned}"


def pipeline_of(name: str) -> str:
    """The pipeline of an actor with this name."""
    return name.split("/", 1)[0]


def namespace_of(application: str) -> str:
    """Where one Serve application's actors have their names."""
    return f"windrose-{application}"
