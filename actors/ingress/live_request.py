"""A request as its ingress keeps it while it runs, and why it may end without an answer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace

from actors.http.errors import ApiError, Unavailable
from actors.messages import GenerateRequest, TokenEvent


@dataclass(slots=True, eq=False)
class Live:
    """A request between `generate`'s first step and its end."""

    request: GenerateRequest
    outputs: list[int]
    weights: str  # those that made the outputs: no others may go on
    deadline_s: float  # monotonic: until when it may wait for a pipeline
    attempt: int = 0
    refusals: int = 0  # in a row
    pipeline: str | None = None  # that counts it as one of its requests
    actor: str | None = None
    num_ended: int = 0  # connections that had ended when it was handed in
    broken_s: float | None = None  # Unix time since when nobody has it that once had it
    closed: bool = False
    queue: asyncio.Queue[TokenEvent | ApiError] = field(default_factory=asyncio.Queue)

    @property
    def attempt_id(self) -> str:
        """The id the attention actor knows; tokens of an earlier attempt are not taken for new."""
        return f"{self.request.request_id}#{self.attempt}"

    def as_submitted(self, ingress_id: str) -> GenerateRequest:
        """The request as it stands now, its tokens so far included."""
        return replace(
            self.request,
            request_id=self.attempt_id,
            ingress_id=ingress_id,
            output_token_ids=tuple(self.outputs),
            weights=self.weights if self.outputs else "",
        )

    def broke(self) -> None:
        """The actor that had it is gone."""
        self.broken_s = self.broken_s or time.time()

    def recovered(self, event: TokenEvent) -> TokenEvent:
        """The event, told to be the first after a break if it is."""
        if self.broken_s is None:
            return event
        since_s, self.broken_s = self.broken_s, None
        return replace(event, recovered=(since_s, time.time()))


def nobody_serves() -> Unavailable:
    """It has waited for as long as it may."""
    return Unavailable("no pipeline can serve the request now", retry_after_s=5.0)


def upgraded() -> Unavailable:
    """Other weights would have to go on with what these began."""
    return Unavailable("the model that began this answer has been replaced: ask again")
