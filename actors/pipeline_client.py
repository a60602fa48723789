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
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from actors.actor_stats import ActorStats
from actors.errors import ApiError, Unavailable
from actors.messages import GenerateRequest, TokenEvent
from actors.survey import experts_json, metrics_text

if TYPE_CHECKING:  # the router's module brings torch, which an ingress has no use for
    from actors.router import Router

_RETRY_PAUSE_S = 0.2
_POLL_S = 1.0
_BROKEN = (RayError, RayServeException, RuntimeError)

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
        self._model_name = model_name
        self._wait_timeout_s = wait_timeout_s
        self._live: dict[str, _Live] = {}
        self._new: list[_Live] = []
        self._gone: dict[str, list[str]] = {}
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._poll: asyncio.Task[None] | None = None
        self._ready = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """The request's events in order; closing the generator early aborts the sequence.

        Raises:
            Unavailable: no pipeline took it in time.
        """
        deadline_s = time.monotonic() + self._wait_timeout_s
        live = _Live(request, list(request.output_token_ids), deadline_s)
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
                names = await self._router.submit.remote(
                    [live.as_submitted(self._ingress_id) for live in batch]
                )
            except _BROKEN as error:
                self._ready = False
                logger.warning("no pipeline took %d requests: %s", len(batch), _first_line(error))
            else:
                self._ready = True
                break
            await asyncio.sleep(_RETRY_PAUSE_S)
            batch = self._still_wanted(batch)
            if not batch:
                return
        for live, name in zip(batch, names, strict=True):
            live.actor = name
            self._ensure_stream(name)
            if live.closed:
                self._abort(live)

    def _still_wanted(self, batch: Sequence[_Live]) -> list[_Live]:
        """Renew the attempts of those whose client waits; give up on those that waited too long."""
        wanted = []
        for live in batch:
            self._live.pop(live.attempt_id, None)
            if live.closed:
                continue
            if time.monotonic() > live.deadline_s:
                live.queue.put_nowait(
                    Unavailable("no pipeline can take the request now", retry_after_s=5.0)
                )
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
            stream: AsyncIterator[Any] = actor.stream.options(num_returns="streaming").remote(
                self._ingress_id
            )
            async for ref in stream:
                for event in await ref:
                    self._deliver(event)
        except (*_BROKEN, ValueError) as error:
            logger.warning("the stream of %s broke: %s", name, _first_line(error))
        finally:
            self._streams.pop(name, None)
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
            del self._live[live.attempt_id]
            live.actor = None
            live.attempt += 1
            live.deadline_s = time.monotonic() + self._wait_timeout_s
            self._enqueue(live)

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
        except (*_BROKEN, ValueError) as error:
            logger.info("%s is gone with the requests to abort: %s", name, _first_line(error))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def survey(self) -> list[ActorStats]:
        """Ask all actors of all pipelines; those that do not answer are left out."""
        named = await asyncio.to_thread(ray.util.list_named_actors, True)
        names = [item["name"] for item in named if item["namespace"] == self._namespace]
        answers = await asyncio.gather(*(self._ask(name) for name in names))
        stats = [answer for answer in answers if answer is not None]
        return sorted(stats, key=lambda one: (one.identity.pipeline, one.identity.rank))

    async def _ask(self, name: str) -> ActorStats | None:
        try:
            actor = await asyncio.to_thread(ray.get_actor, name, self._namespace)
            stats: ActorStats = await actor.stats.remote()
        except (*_BROKEN, ValueError):
            return None
        return stats

    async def experts(self) -> dict[str, object]:
        """Who serves which expert and how loaded each is."""
        return experts_json(await self.survey())

    async def engine_metrics(self) -> str:
        """Prometheus text of all actors."""
        return metrics_text(await self.survey(), self._model_name)

    def ready(self) -> bool:
        """Whether a pipeline serves, as last seen."""
        if self._poll is None:
            self._poll = asyncio.get_running_loop().create_task(self._keep_looking())
        return self._ready

    async def _keep_looking(self) -> None:
        while True:
            stats = await self.survey()
            self._ready = any(
                one.identity.role == "attention" and one.phase == "serving" for one in stats
            )
            await asyncio.sleep(_POLL_S)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
