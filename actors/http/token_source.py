"""The seam between the HTTP surface and whatever makes tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from actors.messages import GenerateRequest, TokenEvent
from actors.placement.placement_messages import ChangeOutcome, PlacementChange


class TokenSource(Protocol):
    """Turns requests into tokens. The HTTP surface knows nothing else of the running system."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """The request's events in order; the last one, and only it, has a finish reason.

        Closing or cancelling the generator before that aborts the sequence. Raises an ApiError,
        before the first event if nothing can take the request (Overloaded, Unavailable).
        """
        ...

    async def experts(self) -> dict[str, object]:
        """Who serves which expert and how loaded each is: the JSON of GET /v1/experts."""
        ...

    async def change(self, change: PlacementChange) -> ChangeOutcome:
        """Change the placement of all pipelines; returns when it is in force where it was accepted.

        Raises an ApiError: BadRequest, with `param`, for a bad argument; Conflict where this is
        not the moment; Unavailable where no pipeline serves.
        """
        ...

    async def metrics(self) -> str:
        """Prometheus text of the whole deployment: what is known of it now."""
        ...

    def ready(self) -> bool:
        """Whether requests can be served now. Asked by health probes only, never per request."""
        ...
