"""How an ingress hands requests in: to the pipeline chosen for each, those of one turn together.

In one call to a router, or, where nothing is left to choose, over the connection to the only
attention actor. What nobody takes is kept here, and offered again, for as long as it may wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING

from ray.serve.handle import DeploymentHandle

from actors.ingress.actor_links import ActorLinks
from actors.ingress.fleet import BROKEN
from actors.ingress.live_request import Attempts, Live, upgraded
from actors.patience import as_long_as, start_apart, within
from actors.pipeline.pipeline_choice import PipelineChoice
from actors.pipeline.recovery import describe

if TYPE_CHECKING:  # the router's module brings torch, which an ingress has no use for
    from actors.pipeline.router import Router

SILENT_S = 10.0  # a pipeline that has not served for so long loses what others can go on with
_RETRY_PAUSE_S = 0.2
_QUICK_TRIES = 3  # in a row, of a request whose actor is always gone; then with pauses
_UPGRADED_S = 10.0  # other weights are served so long: those that began an answer will not return

logger = logging.getLogger(__name__)


class Submitter:
    """Lives on the ingress's event loop."""

    def __init__(
        self,
        router: DeploymentHandle[Router],
        ingress_id: str,
        live: Attempts,
        links: ActorLinks,
        choice: PipelineChoice,
    ) -> None:
        self._router = router
        self._ingress_id = ingress_id
        self._live = live
        self._links = links
        self._choice = choice
        self._new: list[Live] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def enqueue(self, live: Live) -> None:
        """Hand it in with all that come in this turn of the event loop."""
        self._live.add(live)
        if not self._new:
            asyncio.get_running_loop().call_soon(self._flush)
        self._new.append(live)

    def renew(self, live: Live) -> None:
        """Hand it in again: the actor it went to is gone."""
        if live.closed:
            self._live.remove(live)
        else:
            self._live.renew(live)
            self.enqueue(live)

    def renew_later(self, batch: Sequence[Live]) -> None:
        """Hand these in again in a moment, and no longer than a request may wait."""
        self._start(self._wait_with(batch))

    def refused(self, attempt_ids: Sequence[str]) -> None:
        """The only attention actor takes none just now: its router knows when one does."""
        refused = [live for one in attempt_ids if (live := self._live.get(one)) is not None]
        for live in refused:
            live.actor = None
        if refused:
            self._start(self._submit(refused, refused[0].pipeline))

    def leave(self, live: Live) -> None:
        """A request has ended where it was sent to, or goes elsewhere."""
        if live.pipeline is not None:
            self._choice.ended(live.pipeline)
            live.pipeline = None

    def abort(self, live: Live) -> None:
        """Have the actor that has it drop it."""
        if live.actor is not None:
            self._links.abort(live.actor, live.attempt_id)

    def is_served(self, live: Live) -> bool:
        """Whether a pipeline that could go on with it served at the last look."""
        return self._choice.serves(live.as_submitted(self._ingress_id))

    def _flush(self) -> None:
        batch, self._new = [live for live in self._new if not live.closed], []
        self._send(batch)

    def _send(self, batch: Sequence[Live]) -> None:
        """Hand each request to the pipeline chosen for it; those for one pipeline in one call."""
        chosen: dict[str | None, list[Live]] = {}
        for live in batch:
            self.leave(live)
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
        return self._choice.knows_any and not self.is_served(live)

    async def _submit(self, batch: Sequence[Live], pipeline: str | None) -> None:
        for live in batch:
            live.num_ended = self._links.num_ended
        try:
            requests = [live.as_submitted(self._ingress_id) for live in batch]
            handing_in = self._router.submit.remote(requests, pipeline)
            # A router may have to wait for an actor that hangs: others are asked where it hangs.
            named = as_long_as(lambda: self._is_seen(pipeline), SILENT_S, handing_in)
            names = await within(_patience_s(batch), named)
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
                    self.renew(live)
                continue
            live.actor, live.refusals = name, 0
            if self._links.ended_since(name, live.num_ended):
                # It may have begun there on the connection that is gone, or been dropped with it.
                self.abort(live)
                live.broke()
                self.renew(live)
                continue
            self._links.ensure(name)
            if live.closed:
                self.abort(live)
        if slowly:
            await self._wait_with(slowly)

    def _is_seen(self, pipeline: str | None) -> bool:
        return pipeline is None or self._choice.knows(pipeline)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = start_apart(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _patience_s(batch: Sequence[Live]) -> float:
    """Until the first of them has waited for as long as it may."""
    return max(0.0, min(live.deadline_s for live in batch) - time.monotonic())
