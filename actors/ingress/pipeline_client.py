"""The ingress's side of the pipelines: requests out (`submitter.py`), tokens in by the step.

When a connection ends, what had not been finished is submitted again with the tokens received so
far.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from ray.serve.handle import DeploymentHandle

from actors.http.errors import ApiError, Unavailable
from actors.ingress.actor_links import ActorLinks
from actors.ingress.fleet import Fleet
from actors.ingress.live_request import Attempts, Live, nobody_serves
from actors.ingress.submitter import SILENT_S, Submitter
from actors.messages import GenerateRequest, StepEvents, TokenEvent
from actors.naming import pipeline_of, weights_of
from actors.pipeline.pipeline_choice import PipelineChoice
from actors.pipeline.pipeline_report import PipelineReport
from actors.placement.placement_messages import ChangeOutcome, PlacementChange

if TYPE_CHECKING:  # the router's module brings torch, which an ingress has no use for
    from actors.pipeline.router import Router

_UNSEEN_S = 60.0  # one that drains is in no report, and may read a long prompt meanwhile


class PipelineClient:
    """A TokenSource over all pipelines of one application."""

    def __init__(
        self,
        router: DeploymentHandle[Router],
        namespace: str,
        ingress_id: str,
        fleet: Fleet,
        wait_timeout_s: float,
        choice: PipelineChoice,
        *,
        asleep_is_ready: bool,
    ) -> None:
        """With `asleep_is_ready` it can serve without any pipeline: the next request starts one."""
        self._wait_timeout_s = wait_timeout_s
        self._live = Attempts()
        self._links = ActorLinks(
            namespace, ingress_id, self._on_events, self._on_refused, self._resubmit_from
        )
        self._choice = choice
        self._submitter = Submitter(router, ingress_id, self._live, self._links, choice)
        self._asleep_is_ready = asleep_is_ready
        self._fleet = fleet
        fleet.on_look = self._on_look

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """The request's events in order; closing the generator early aborts the sequence.

        Raises:
            Unavailable: no pipeline took it in time.
        """
        deadline_s = time.monotonic() + self._wait_timeout_s
        live = Live(request, list(request.output_token_ids), request.weights, deadline_s)
        self._fleet.watch()
        self._submitter.enqueue(live)
        finished = False
        try:
            while not finished:
                event = await live.queue.get()
                if isinstance(event, ApiError):
                    finished = True
                    raise event
                finished = event.finish_reason is not None
                yield event
        finally:
            live.closed = True
            self._submitter.leave(live)
            self._live.remove(live)
            if not finished:
                self._submitter.abort(live)

    def _on_refused(self, attempt_ids: Sequence[str]) -> None:
        self._submitter.refused(attempt_ids)

    def _go_on_elsewhere(self, live: Live) -> None:
        """What had a request is gone, or of no use: it may wait anew for another."""
        live.deadline_s = time.monotonic() + self._wait_timeout_s
        live.broke()
        self._submitter.renew(live)

    def _on_events(self, name: str, events: StepEvents) -> None:
        self._fleet.heard(pipeline_of(name))
        weights = weights_of(name)
        for event in events:
            live = self._live.get(event.request_id)
            if live is None:
                if event.finish_reason is None:
                    self._links.abort(name, event.request_id)  # it runs for nobody
            elif live.actor is not None or not self._links.ended_since(name, live.num_ended):
                self._deliver(live, event, weights)
            # Else tokens before these may be lost: it is submitted again once it is known who has
            # it.

    def _deliver(self, live: Live, event: TokenEvent, weights: str) -> None:
        live.outputs += event.token_ids
        live.weights = weights
        if event.finish_reason is not None:
            self._live.remove(live)
        live.queue.put_nowait(live.recovered(event))

    def _resubmit_from(self, name: str, opened: bool) -> None:
        """The connection to an actor is gone, or, if it was not `opened`, cannot be made."""
        orphans = [live for live in self._live if live.actor == name]
        self._links.leave(name, [live.attempt_id for live in orphans])
        if opened:
            for live in orphans:
                self._go_on_elsewhere(live)
            return
        for live in orphans:
            live.broke()
            self._live.renew(live)
        if orphans:
            self._submitter.renew_later(orphans)

    def _on_look(self, reports: Sequence[PipelineReport]) -> None:
        self._choice.look(reports, time.monotonic())
        self._links.look(self._choice.outcasts)
        self._give_up_on_silent()

    def _give_up_on_silent(self) -> None:
        """Take what runs in a pipeline that cannot serve to another that can, or refuse it."""
        for live in self._live:
            if live.actor is None:
                continue
            pipeline = pipeline_of(live.actor)
            silent_s = self._fleet.silent_s(pipeline)
            known = self._choice.knows(pipeline)
            most_s = SILENT_S if known else min(_UNSEEN_S, self._wait_timeout_s)
            if silent_s > most_s and self._submitter.is_served(live):
                self._submitter.abort(live)
                self._go_on_elsewhere(live)
            elif silent_s > self._wait_timeout_s:
                self._submitter.abort(live)
                self._live.end(live, nobody_serves())

    def give_up(self) -> None:
        """End all that runs with an error: the server ends now."""
        for live in self._live:
            self._submitter.abort(live)
            self._live.end(live, Unavailable("the server has shut down", retry_after_s=5.0))

    async def experts(self) -> dict[str, object]:
        """Who serves which expert and how loaded each is."""
        return await self._fleet.experts()

    async def change(self, change: PlacementChange) -> ChangeOutcome:
        """Change who serves which expert, in all pipelines. Raises ApiError."""
        return await self._fleet.change(change)

    async def metrics(self) -> str:
        """Prometheus text of the whole deployment."""
        return await self._fleet.metrics()

    def ready(self) -> bool:
        """Whether a pipeline serves, as last seen, or there may be none and none is."""
        return self._fleet.ready() or (self._asleep_is_ready and not self._choice.knows_any)
