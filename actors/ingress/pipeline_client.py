"""The ingress's side of the pipelines: requests out in batches, tokens in by the step.

Requests that arrive in the same turn of the event loop travel together: in one call to a router,
or, where nothing is left to choose, over the connection to the only attention actor. When a
connection ends, what had not been finished is submitted again with the tokens received so far.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import TYPE_CHECKING

from ray.serve.handle import DeploymentHandle

from actors.http.errors import ApiError, Unavailable
from actors.ingress.actor_links import ActorLinks
from actors.ingress.fleet import BROKEN, Fleet
from actors.ingress.live_request import Attempts, Live, nobody_serves, upgraded
from actors.messages import GenerateRequest, StepEvents, TokenEvent
from actors.naming import pipeline_of, weights_of
from actors.patience import as_long_as, start_apart, within
from actors.pipeline.pipeline_choice import PipelineChoice
from actors.pipeline.pipeline_report import PipelineReport
from actors.pipeline.recovery import describe
from actors.placement.placement_messages import ChangeOutcome, PlacementChange

if TYPE_CHECKING:  # the router's module brings torch, which an ingress has no use for
    from actors.pipeline.router import Router

_RETRY_PAUSE_S = 0.2
_QUICK_TRIES = 3  # in a row, of a request whose actor is always gone; then with pauses
_SILENT_S = 10.0  # a pipeline that has not served for so long loses what others can go on with
_UNSEEN_S = 60.0  # one that drains is in no report, and may read a long prompt meanwhile
_UPGRADED_S = 10.0  # other weights are served so long: those that began an answer will not return

logger = logging.getLogger(__name__)


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
        self._router = router
        self._ingress_id = ingress_id
        self._wait_timeout_s = wait_timeout_s
        self._live = Attempts()
        self._new: list[Live] = []
        self._links = ActorLinks(
            namespace, ingress_id, self._on_events, self._on_refused, self._resubmit_from
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._choice = choice
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
        self._enqueue(live)
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
            self._leave(live)
            self._live.remove(live)
            if not finished:
                self._abort(live)

    def _enqueue(self, live: Live) -> None:
        self._live.add(live)
        if not self._new:
            asyncio.get_running_loop().call_soon(self._flush)
        self._new.append(live)

    def _flush(self) -> None:
        batch, self._new = [live for live in self._new if not live.closed], []
        self._send(batch)

    def _send(self, batch: Sequence[Live]) -> None:
        """Hand each request to the pipeline chosen for it; those for one pipeline in one call."""
        chosen: dict[str | None, list[Live]] = {}
        for live in batch:
            self._leave(live)
            live.pipeline = name = self._choice.choose(live.as_submitted(self._ingress_id))
            chosen.setdefault(name, []).append(live)
        nowhere = chosen.pop(None, [])
        if not self._choice.knows_any:
            # Serve keeps them until there is one; and starts one, where it had none.
            anywhere = [live for live in nowhere if not live.outputs]
            nowhere = [live for live in nowhere if live.outputs]
            if anywhere:
                self._start(self._submit(anywhere, None))
        if nowhere:
            self._start(self._wait_with(nowhere))
        for name, group in chosen.items():
            sole = self._choice.sole_attention(name)
            link = None if sole is None else self._links.open_to(sole)
            if link is not None:
                for live in group:
                    live.actor, live.refusals = sole, 0
                link.submit([live.as_submitted(self._ingress_id) for live in group])
            else:
                self._start(self._submit(group, name))

    def _leave(self, live: Live) -> None:
        """A request has ended where it was sent to, or goes elsewhere."""
        if live.pipeline is not None:
            self._choice.ended(live.pipeline)
            live.pipeline = None

    async def _wait_with(self, batch: Sequence[Live]) -> None:
        """Look again in a moment for a pipeline that can take these."""
        await asyncio.sleep(_RETRY_PAUSE_S)
        wanted = []
        for live in self._live.still_wanted(batch, time.monotonic()):
            absent_s = self._choice.absent_s(live.weights, time.monotonic()) if live.outputs else 0
            if absent_s > _UPGRADED_S:
                self._live.end(live, upgraded())
            else:
                wanted.append(live)
        held: list[Live] = []
        able: list[Live] = []
        for live in wanted:
            (held if self._is_to_wait(live) else able).append(live)
        self._send(able)
        if held:
            self._start(self._wait_with(held))

    def _is_to_wait(self, live: Live) -> bool:
        """Whether there are pipelines, and none that could take it serves: the next look may tell.

        Handed to a router it would come back in a moment, and with it all its tokens.
        """
        choice = self._choice
        return choice.knows_any and not choice.serves(live.as_submitted(self._ingress_id))

    async def _submit(self, batch: Sequence[Live], pipeline: str | None) -> None:
        for live in batch:
            live.num_ended = self._links.num_ended
        try:
            requests = [live.as_submitted(self._ingress_id) for live in batch]
            handing_in = self._router.submit.remote(requests, pipeline)
            # A router may have to wait for an actor that hangs: others are asked where it hangs.
            named = as_long_as(lambda: self._is_seen(pipeline), _SILENT_S, handing_in)
            names = await within(self._patience_s(batch), named)
        except BROKEN as error:
            logger.warning("no pipeline took %d requests: %s", len(batch), describe(error))
            await asyncio.sleep(_RETRY_PAUSE_S)
            self._send(self._live.still_wanted(batch, time.monotonic()))
            return
        slowly = []
        for live, name in zip(batch, names, strict=True):
            if name is None:
                live.refusals += 1
                if live.refusals > _QUICK_TRIES or self._is_to_wait(live):
                    slowly.append(live)
                else:
                    self._renew(live)
                continue
            live.actor, live.refusals = name, 0
            if self._links.ended_since(name, live.num_ended):
                # It may have begun there on the connection that is gone, or been dropped with it.
                self._abort(live)
                live.broke()
                self._renew(live)
                continue
            self._links.ensure(name)
            if live.closed:
                self._abort(live)
        if slowly:
            await self._wait_with(slowly)

    def _is_seen(self, pipeline: str | None) -> bool:
        return pipeline is None or self._choice.knows(pipeline)

    def _on_refused(self, attempt_ids: Sequence[str]) -> None:
        """The only attention actor takes none just now: its router knows when one does."""
        refused = [live for one in attempt_ids if (live := self._live.get(one)) is not None]
        for live in refused:
            live.actor = None
        if refused:
            self._start(self._submit(refused, refused[0].pipeline))

    def _patience_s(self, batch: Sequence[Live]) -> float:
        """Until the first of them has waited for as long as it may."""
        return max(0.0, min(live.deadline_s for live in batch) - time.monotonic())

    def _renew(self, live: Live) -> None:
        """Submit a request again: the actor it went to is gone."""
        if live.closed:
            self._live.remove(live)
        else:
            self._live.renew(live)
            self._enqueue(live)

    def _go_on_elsewhere(self, live: Live) -> None:
        """What had a request is gone, or of no use: it may wait anew for another."""
        live.deadline_s = time.monotonic() + self._wait_timeout_s
        live.broke()
        self._renew(live)

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
        if orphans:  # with a pause, and no longer than a request may wait
            self._start(self._wait_with(orphans))

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
            most_s = _SILENT_S if known else min(_UNSEEN_S, self._wait_timeout_s)
            if silent_s > most_s and self._choice.serves(live.as_submitted(self._ingress_id)):
                self._abort(live)
                self._go_on_elsewhere(live)
            elif silent_s > self._wait_timeout_s:
                self._abort(live)
                self._live.end(live, nobody_serves())

    def give_up(self) -> None:
        """End all that runs with an error: the server ends now."""
        for live in self._live:
            self._abort(live)
            self._live.end(live, Unavailable("the server has shut down", retry_after_s=5.0))

    def _abort(self, live: Live) -> None:
        if live.actor is not None:
            self._links.abort(live.actor, live.attempt_id)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = start_apart(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
