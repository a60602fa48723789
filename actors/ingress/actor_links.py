"""All connections of one ingress: one to each attention actor that it was ever sent to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from actors.ingress.actor_link import ActorLink
from actors.ingress.fleet import BROKEN
from actors.messages import StepEvents
from actors.patience import start_apart
from actors.pipeline.recovery import describe

_LEFT_S = 60.0  # longer than an actor waits for an ingress that says nothing

logger = logging.getLogger(__name__)


class ActorLinks:
    """Lives on the ingress's event loop."""

    def __init__(
        self,
        namespace: str,
        ingress_id: str,
        on_events: Callable[[str, StepEvents], None],
        on_refused: Callable[[list[str]], None],
        on_ended: Callable[[str, bool], None],
    ) -> None:
        """Call `on_ended(actor, opened)` when a connection has ended; the others as ActorLink.

        `opened` False: it could not be made.
        """
        self._namespace = namespace
        self._ingress_id = ingress_id
        self._on_events = on_events
        self._on_refused = on_refused
        self._on_ended = on_ended
        self._links: dict[str, ActorLink] = {}  # by the name of the attention actor
        self._tasks: set[asyncio.Task[None]] = set()
        self._unwanted: dict[str, list[str]] = {}  # actor -> attempts to drop, told together
        # By actor, until when and which: to drop with every connection that is made until then.
        self._left: dict[str, tuple[float, list[str]]] = {}
        self._outcasts: set[str] = set()  # as of the last look
        self.num_ended = 0  # connections, so far
        self._ended: dict[str, int] = {}  # by actor: which of them was its last

    def ensure(self, actor: str) -> None:
        """Connect, unless there is a connection or one is being made."""
        if actor not in self._links:
            link = self._links[actor] = ActorLink(
                actor, self._namespace, self._ingress_id, self._on_events, self._on_refused
            )
            # Not forgotten yet: this connection may fail too, and to drop them twice does no harm.
            _, left = self._left.get(actor, (0.0, []))
            if left:
                link.abort(left)
            task = start_apart(self._keep(actor, link))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _keep(self, actor: str, link: ActorLink) -> None:
        try:
            await link.run()
            logger.info("the connection to %s has ended", actor)
        except (*BROKEN, ValueError, OSError) as error:
            logger.warning("there is no connection to %s: %s", actor, describe(error))
        finally:
            del self._links[actor]
            self.num_ended += 1
            self._ended[actor] = self.num_ended
            self._on_ended(actor, link.opened)

    def ended_since(self, actor: str, num_ended: int) -> bool:
        """Whether a connection to it has ended since there had been so many ends in all."""
        return self._ended.get(actor, 0) > num_ended

    def open_to(self, actor: str) -> ActorLink | None:
        """The connection on which what is said goes out at once; None if there is none."""
        link = self._links.get(actor)
        return link if link is not None and link.is_open else None

    def abort(self, actor: str, attempt_id: str) -> None:
        """Have the actor drop a request, in one message with others of this turn of the loop."""
        if not self._unwanted:
            asyncio.get_running_loop().call_soon(self._flush_aborts)
        self._unwanted.setdefault(actor, []).append(attempt_id)

    def _flush_aborts(self) -> None:
        unwanted, self._unwanted = self._unwanted, {}
        for actor, attempt_ids in unwanted.items():
            if (link := self._links.get(actor)) is not None:
                link.abort(attempt_ids)
            else:
                self.leave(actor, attempt_ids)

    def leave(self, actor: str, attempt_ids: list[str]) -> None:
        """Nobody waits for these any more, which an actor without a connection cannot be told.

        It may live: without a word it would go on with them beside the attempts that follow.
        """
        _, left = self._left.get(actor, (0.0, []))
        until_s = asyncio.get_running_loop().time() + _LEFT_S
        self._left[actor] = (until_s, left + attempt_ids)

    def look(self, outcasts_of: Callable[[Iterable[str]], set[str]]) -> None:
        """Say that this ingress lives; give up connections to actors that others serve without.

        A router knows at once of a machine that cannot be reached, a connection to it in 10 s.
        Two looks must say so, since the first may be of the time before an actor began to serve.
        """
        now_s = asyncio.get_running_loop().time()
        self._left = {one: left for one, left in self._left.items() if left[0] > now_s}
        for link in self._links.values():
            link.renew()
        outcasts = outcasts_of(self._links)
        for actor in outcasts & self._outcasts:
            self._links[actor].give_up()
        self._outcasts = outcasts
