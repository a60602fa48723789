"""Serve hands a call to the router that it is meant for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.request_router import PendingRequest

from actors.ingress.request_router import ByPipeline
from actors.naming import pipeline_name

REPLICAS: list[Any] = [
    SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in ("one", "two")
]


def chosen(*args: Any) -> list[list[str]]:
    """Where a call with these arguments may go."""

    async def choose() -> Any:
        call = PendingRequest(args=list(args), kwargs={}, metadata=SimpleNamespace())  # type: ignore[arg-type]
        router = ByPipeline.__new__(ByPipeline)  # it needs none of what Serve would give it
        groups = await router.choose_replicas(REPLICAS, call)
        assert call.routing_context.should_backoff, "without it Serve tries again without a pause"
        return groups

    return [[one.replica_id.unique_id for one in group] for group in asyncio.run(choose())]


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_call_goes_to_the_pipeline_it_names(name: str) -> None:
    assert chosen(["request"], pipeline_name("weights", name)) == [[name]]


@pytest.mark.parametrize(
    "args", [(["request"], pipeline_name("weights", "gone")), (["request"], None), ([],), ()]
)
def test_any_other_call_goes_anywhere(args: tuple[Any, ...]) -> None:
    assert chosen(*args) == [["one", "two"]]
