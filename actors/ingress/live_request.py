"""A request as its ingress keeps it while it runs, and why it may end without an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
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


class Attempts:
    """Requests that run, by the ids that attention actors know: a new one for every attempt."""

    def __init__(self) -> None:
        self._live: dict[str, Live] = {}

    def __iter__(self) -> Iterator[Live]:
        """Of those that are there now, whatever comes and goes meanwhile."""
        return iter(list(self._live.values()))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._live)

    def get(self, attempt_id: str) -> Live | None:
        """The request that this is the newest attempt of."""
        return self._live.get(attempt_id)

    def add(self, live: Live) -> None:
        """Know it by its present id."""
        self._live[live.attempt_id] = live

    def remove(self, live: Live) -> None:
        """Know it no more."""
        self._live.pop(live.attempt_id, None)

    def renew(self, live: Live) -> None:
        """Nobody has it: what comes of the attempt before is not taken for the next one's."""
        self.remove(live)
        live.actor = None
        live.attempt += 1
        self.add(live)

    def still_wanted(self, batch: Iterable[Live], now_s: float) -> list[Live]:
        """Renew those whose client waits; give up on those that have waited too long."""
        wanted = []
        for live in batch:
            if live.closed:
                self.remove(live)
            elif now_s > live.deadline_s:
                self.end(live, nobody_serves())
            else:
                self.renew(live)
                wanted.append(live)
        return wanted

    def end(self, live: Live, error: ApiError) -> None:
        """Its client is told why there is no more to come."""
        self.remove(live)
        live.queue.put_nowait(error)


def nobody_serves() -> Unavailable:
    """It has waited for as long as it may."""
    return Unavailable("no pipeline can serve the request now", retry_after_s=5.0)


def upgraded() -> Unavailable:
    """Other weights would have to go on with what these began."""
    return Unavailable("the model that began this answer has been replaced: ask again")
