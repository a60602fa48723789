"""The routes that change who holds which expert while requests run: POST /v1/experts/...

A request is answered when its change is in force. A change that has begun goes on to its end
whether or not its client still waits.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextvars import Context
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from actors.http.doors import is_foreign
from actors.http.errors import Draining, Forbidden
from actors.http.openai_schema import parse_request
from actors.http.request_log import record_of
from actors.http.serving_state import ServingState
from actors.http.transport import CLIENT_GONE_STATUS, read_body
from actors.placement.placement_messages import (
    ChangeOutcome,
    Copy,
    Drop,
    Move,
    PlacementChange,
    Rebalance,
    Replicate,
    Scale,
)

_begun: set[asyncio.Task[ChangeOutcome]] = set()  # asyncio itself holds tasks only weakly


class ChangeBody(BaseModel):
    """What asks for a change. Types are strict, and fields without a meaning are refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    @abstractmethod
    def change(self) -> PlacementChange:
        """The change it asks for."""


Index = Annotated[int, Field(ge=0)]
Expert = Annotated[Index, Field(description="the expert's index in its layer")]
Layer = Annotated[Index | None, Field(description="default: all layers")]
ToRank = Annotated[Index | None, Field(description="default: the least busy")]
FromRank = Annotated[Index | None, Field(description="default: the busiest of its holders")]


class ReplicateBody(ChangeBody):
    """Let one more rank hold an expert, to share its rows."""

    expert: Expert
    layer: Layer = None
    to: ToRank = None

    def change(self) -> Replicate:
        """The change it asks for."""
        return Replicate(self.expert, self.layer, self.to)


class MoveBody(ChangeBody):
    """Take an expert from one rank to another."""

    expert: Expert
    layer: Layer = None
    source: Annotated[FromRank, Field(alias="from")] = None
    to: ToRank = None

    def change(self) -> Move:
        """The change it asks for."""
        return Move(self.expert, self.layer, self.source, self.to)


class DropBody(ChangeBody):
    """Let a rank hold an expert no longer; the last holder keeps it."""

    expert: Expert
    layer: Layer = None
    rank: FromRank = None

    def change(self) -> Drop:
        """The change it asks for."""
        return Drop(self.expert, self.layer, self.rank)


class RebalanceBody(ChangeBody):
    """Place the experts as the balancer would; the body may be empty."""

    dry_run: Annotated[bool, Field(description="only say how")] = False

    def change(self) -> Rebalance:
        """The change it asks for."""
        return Rebalance(self.dry_run)


class ScaleBody(ChangeBody):
    """Serve with so many expert actors from now on."""

    expert_actors: Annotated[int, Field(ge=1, description="of each pipeline")]

    def change(self) -> Scale:
        """The change it asks for."""
        return Scale(self.expert_actors)


BODIES: dict[str, type[ChangeBody]] = {
    "replicate": ReplicateBody,
    "move": MoveBody,
    "drop": DropBody,
    "rebalance": RebalanceBody,
    "scale": ScaleBody,
}


def add_admin_routes(app: FastAPI) -> None:
    """Add a route for each of BODIES; they find the ServingState at `app.state.serving`."""
    for name, schema in BODIES.items():
        app.add_api_route(
            f"/v1/experts/{name}",
            _endpoint(schema),
            methods=["POST"],
            dependencies=[Depends(need_admin_key)],
            name=f"{name}_experts",
            description=schema.__doc__,
            openapi_extra={
                "requestBody": {
                    "required": _needs_fields(schema),
                    "content": {"application/json": {"schema": schema.model_json_schema()}},
                }
            },
        )


async def need_admin_key(request: Request) -> None:
    """Of every route that changes placement. Raises Unauthorized or Forbidden."""
    state: ServingState = request.app.state.serving
    origin = request.headers.get("origin")
    host, keyless = request.headers.get("host"), state.doors.keyless
    if is_foreign(origin, host, state.allowed_origins, keyless=keyless):
        raise Forbidden(f"a page of {origin} may not change placement; see --allowed-origins")
    record_of(request).caller = state.doors.let_change(request.headers.get("authorization"))


def outcome_json(outcome: ChangeOutcome) -> dict[str, object]:
    """The body of the answer."""
    return {
        "pipelines": [
            {
                "pipeline": report.pipeline,
                "placement_version": report.placement_version,
                "applied": report.applied,
                "reason": report.reason,
                "added": _copies_json(report.added),
                "dropped": _copies_json(report.dropped),
                "took_s": report.took_s,
            }
            for report in outcome.reports
        ],
        "refused": list(outcome.refused),
    }


def _copies_json(copies: Iterable[Copy]) -> list[dict[str, int]]:
    return [{"layer": layer, "expert": expert, "rank": rank} for layer, expert, rank in copies]


def _endpoint(schema: type[ChangeBody]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        state: ServingState = request.app.state.serving
        try:
            content = await read_body(request, state.max_request_bytes, state.body_timeout_s)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE_STATUS)
        # However full the server is, it may change: that may be what makes it less full.
        if state.draining:
            raise Draining("the server is shutting down", retry_after_s=5.0)
        if not content.strip() and not _needs_fields(schema):
            content = b"{}"
        change = parse_request(content, schema).change()
        return JSONResponse(outcome_json(await _to_its_end(state.source.change(change))))

    return endpoint


def _needs_fields(schema: type[ChangeBody]) -> bool:
    return any(field.is_required() for field in schema.model_fields.values())


async def _to_its_end(work: Coroutine[Any, Any, ChangeOutcome]) -> ChangeOutcome:
    """The result of `work`, which goes on where the caller is cancelled.

    In a context of its own: by the request's, Ray Serve finds the calls made within `work` that
    no replica has taken yet, and cancels them when the client goes away.
    """
    task = asyncio.get_running_loop().create_task(work, context=Context())
    _begun.add(task)
    task.add_done_callback(_begun.discard)
    return await asyncio.shield(task)
