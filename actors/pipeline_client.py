"""The ingress's side of the pipelines: requests out in batches, tokens in by the step.

Requests that arrive in the same turn of the event loop travel to a router in one call. Each
attention actor sends this ingress one stream of its own, opened once and read for ever; when it
breaks, what it had not finished is submitted again with the tokens received so far.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.serve.handle import DeploymentHandle

from actors.errors import ApiError, Unavailable
from actors.fleet import BROKEN, Fleet
from actors.messages import GenerateRequest, TokenEvent
from actors.naming import pipeline_of
from actors.patience import within
from actors.placement_messages import ChangeReport, PlacementChange
from actors.recovery import describe

if TYPE_CHECKING:  # the router's module brings torch, which an ingress has no use for
    from actors.router import Router

_RETRY_PAUSE_S = 0.2

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Live:
    """A request between `generate`'s first step and its end."""

    request: GenerateRequest
    outputs: list[int]
    deadline_s: float  # monotonic: until when it may wait for a pipeline
    attempt: int = 0
    actor: str | None = None
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
        )


class PipelineClient:
    """A TokenSource over all pipelines of one application."""

    def __init__(
        self,
        router: DeploymentHandle[Router],
        namespace: str,
        ingress_id: str,
        model_name: str,
        wait_timeout_s: float,
    ) -> None:
        self._router = router
        self._namespace = namespace
        self._ingress_id = ingress_id
        self._wait_timeout_s = wait_timeout_s
        self._live: dict[str, _Live] = {}
        self._new: list[_Live] = []
        self._gone: dict[str, list[str]] = {}
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._actors: dict[str, Any] = {}  # those a stream is read from
        self._tasks: set[asyncio.Task[None]] = set()
        self._fleet = Fleet(router, namespace, model_name, self._on_look)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """The request's events in order; closing the generator early aborts the sequence.

        Raises:
            Unavailable: no pipeline took it in time.
        """
        deadline_s = time.monotonic() + self._wait_timeout_s
        live = _Live(request, list(request.output_token_ids), deadline_s)
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
            self._live.pop(live.attempt_id, None)
            if not finished:
                self._abort(live)

    def _enqueue(self, live: _Live) -> None:
        self._live[live.attempt_id] = live
        if not self._new:
            asyncio.get_running_loop().call_soon(self._flush)
        self._new.append(live)

    def _flush(self) -> None:
        batch, self._new = [live for live in self._new if not live.closed], []
        if batch:
            self._start(self._submit(batch))

    async def _submit(self, batch: Sequence[_Live]) -> None:
        while True:
            try:
                names = await within(self._patience_s(batch), self._hand_in(batch))
            except BROKEN as error:
                logger.warning("no pipeline took %d requests: %s", len(batch), describe(error))
            else:
                break
            await asyncio.sleep(_RETRY_PAUSE_S)
            batch = self._still_wanted(batch)
            if not batch:
                return
        for live, name in zip(batch, names, strict=True):
            if name is None:
                self._renew(live)
                continue
            live.actor = name
            self._ensure_stream(name)
            if live.closed:
                self._abort(live)

    async def _hand_in(self, batch: Sequence[_Live]) -> list[str | None]:
        requests = [live.as_submitted(self._ingress_id) for live in batch]
        names: list[str | None] = await self._router.submit.remote(requests)
        return names

    def _patience_s(self, batch: Sequence[_Live]) -> float:
        """Until the first of them has waited for as long as it may."""
        return max(0.0, min(live.deadline_s for live in batch) - time.monotonic())

    def _renew(self, live: _Live) -> None:
        """Submit a request again: the actor it went to is gone."""
        self._live.pop(live.attempt_id, None)
        if not live.closed:
            live.actor = None
            live.attempt += 1
            self._enqueue(live)

    def _still_wanted(self, batch: Sequence[_Live]) -> list[_Live]:
        """Renew the attempts of those whose client waits; give up on those that waited too long."""
        wanted = []
        for live in batch:
            self._live.pop(live.attempt_id, None)
            if live.closed:
                continue
            if time.monotonic() > live.deadline_s:
                live.queue.put_nowait(_nobody_serves())
                continue
            live.attempt += 1
            self._live[live.attempt_id] = live
            wanted.append(live)
        return wanted

    def _ensure_stream(self, name: str) -> None:
        if name not in self._streams:
            self._streams[name] = asyncio.get_running_loop().create_task(self._read(name))

    async def _read(self, name: str) -> None:
        try:
            actor = await asyncio.to_thread(ray.get_actor, name, self._namespace)
            self._actors[name] = actor
            stream: AsyncIterator[Any] = actor.stream.options(num_returns="streaming").remote(
                self._ingress_id
            )
            async for ref in stream:
                for event in await ref:
                    self._deliver(event)
        except (*BROKEN, ValueError) as error:
            logger.warning("the stream of %s broke: %s", name, describe(error))
        finally:
            self._streams.pop(name, None)
            self._actors.pop(name, None)
            self._resubmit_from(name)

    def _deliver(self, event: TokenEvent) -> None:
        live = self._live.get(event.request_id)
        if live is None:
            return
        live.outputs += event.token_ids
        if event.finish_reason is not None:
            del self._live[event.request_id]
        live.queue.put_nowait(event)

    def _resubmit_from(self, name: str) -> None:
        orphans = [live for live in self._live.values() if live.actor == name]
        for live in orphans:
            live.deadline_s = time.monotonic() + self._wait_timeout_s
            self._renew(live)

    def _on_look(self) -> None:
        for actor in self._actors.values():
            actor.renew.remote(self._ingress_id)
        self._give_up_on_silent()

    def _give_up_on_silent(self) -> None:
        """Refuse what runs in a pipeline that has not been able to serve for too long."""
        for live in list(self._live.values()):
            if live.actor is None:
                continue
            if self._fleet.silent_s(pipeline_of(live.actor)) > self._wait_timeout_s:
                self._abort(live)
                del self._live[live.attempt_id]
                live.queue.put_nowait(_nobody_serves())

    def _abort(self, live: _Live) -> None:
        if live.actor is None:
            return
        if not self._gone:
            asyncio.get_running_loop().call_soon(self._flush_aborts)
        self._gone.setdefault(live.actor, []).append(live.attempt_id)

    def _flush_aborts(self) -> None:
        gone, self._gone = self._gone, {}
        for name, attempt_ids in gone.items():
            self._start(self._send_abort(name, attempt_ids))

    async def _send_abort(self, name: str, attempt_ids: list[str]) -> None:
        try:
            actor = await asyncio.to_thread(ray.get_actor, name, self._namespace)
            await actor.abort.remote(attempt_ids)
        except (*BROKEN, ValueError) as error:
            logger.info("%s is gone with the requests to abort: %s", name, describe(error))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def experts(self) -> dict[str, object]:
        """Who serves which expert and how loaded each is."""
        return await self._fleet.experts()

    async def change(self, change: PlacementChange) -> list[ChangeReport]:
        """Change who serves which expert, in all pipelines. Raises ApiError."""
        return await self._fleet.change(change)

    async def engine_metrics(self) -> str:
        """Prometheus text of all actors."""
        return await self._fleet.metrics()

    def ready(self) -> bool:
        """Whether a pipeline serves, as last seen."""
        return self._fleet.ready()


def _nobody_serves() -> Unavailable:
    return Unavailable("no pipeline can serve the request now", retry_after_s=5.0)
