"""A crew over fake actors, and a check of whom it ended."""

from __future__ import annotations

from actors.pipeline.crew import Crew
from tests.actors.fake_actors import World
from tests.actors.fake_pipeline import FakeSpawner

LOAD_TIMEOUT_S = 1800.0


def new_crew(world: World, spares: int = 0) -> Crew:
    """Two attention ranks; an expert rank r holds the pair (0, r)."""
    return Crew(FakeSpawner(world), 2, spares, LOAD_TIMEOUT_S, lambda rank: [(0, rank)])


def assert_ended(world: World, *names: str) -> None:
    assert [actor.name for actor in world.ended] == list(names)
    assert not world.wrongs
