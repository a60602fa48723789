"""Routers and attention actors as an ingress sees them, without processes, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

from actors.http.request_metrics import RequestMetrics
from actors.ingress.fleet import Fleet
from actors.ingress.pipeline_client import PipelineClient
from actors.messages import GenerateRequest, StepEvents, TokenEvent
from actors.naming import weights_of
from actors.pipeline.assignment import Assigner
from actors.pipeline.pipeline_choice import PipelineChoice
from actors.pipeline.pipeline_report import PipelineReport
from actors.pipeline.pipeline_tally import PipelineView
from model.sampling_params import SamplingParams
from tests.actors.reports import report
from tests.actors.virtual_time import run, turns

T = TypeVar("T")
IN_A_REQUEST: ContextVar[bool] = ContextVar("in a request")  # as Serve's own variable


class Actor:
    """An attention actor: what it was sent, and what it has to say (None: it dies)."""

    def __init__(self) -> None:
        self.outbox: asyncio.Queue[StepEvents | None] = asyncio.Queue()
        self.taken: list[GenerateRequest] = []
        self.aborted: list[str] = []
        self.renewed = 0
        self.serves = True


class Connection:
    """In place of an ActorLink."""

    def __init__(
        self,
        name: str,
        actor: Actor | None,
        on_events: Callable[[str, StepEvents], None],
        on_refused: Callable[[list[str]], None],
    ) -> None:
        """Without an actor there is nothing to connect to."""
        self._name = name
        self._actor = actor
        self._on_events = on_events
        self._on_refused = on_refused
        self.is_open = self.opened = False

    def give_up(self) -> None:
        assert self._actor is not None
        self._actor.outbox.put_nowait(None)

    async def run(self) -> None:
        if self._actor is None:
            raise ValueError("there is no actor of this name")
        self.is_open = self.opened = True
        while (events := await self._actor.outbox.get()) is not None:
            self._on_events(self._name, events)
        self.is_open = False

    def submit(self, requests: list[GenerateRequest]) -> None:
        assert self._actor is not None
        if self._actor.serves:
            self._actor.taken += requests
        else:
            ids = [one.request_id for one in requests]
            asyncio.get_running_loop().call_soon(self._on_refused, ids)

    def abort(self, request_ids: list[str]) -> None:
        if self._actor is not None:
            self._actor.aborted += request_ids

    def renew(self) -> None:
        assert self._actor is not None
        self._actor.renewed += 1


class World:
    """Routers by the names of their pipelines, each with one actor; and what they were sent."""

    def __init__(self, *names: str, sole: bool = False) -> None:
        """`sole`: the routers say that there is no other attention actor."""
        self._sole = sole
        self.members: tuple[str, ...] | None = None  # of every pipeline; None: the one it has
        self.actors = {name: Actor() for name in names}
        self.hanging: set[str] = set()  # routers that answer nothing
        self.none = False  # routers take nothing
        self.stuck: set[str] = set()  # routers that never say who has a request
        self.ailing: set[str] = set()  # pipelines that cannot serve
        self.unreachable: set[str] = set()  # pipelines to whose actors no connection can be made
        self.answering = asyncio.Event()  # unset: routers do not say yet who has a request
        self.answering.set()
        self.calls: list[tuple[str | None, list[GenerateRequest]]] = []
        self.submit = SimpleNamespace(remote=self._submit)

    def broadcast(self, method: str, *_: Any) -> Any:
        async def view(name: str) -> Any:
            if name in self.hanging:
                await asyncio.Event().wait()
            return PipelineView(self._report(name), {}, {}, [])

        async def replicas() -> list[Any]:
            assert IN_A_REQUEST.get(None) is None
            assert method == "view"
            return [SimpleNamespace(get_async=partial(view, name)) for name in self.actors]

        return SimpleNamespace(_fetch_replica_results_async=replicas)

    def _report(self, name: str) -> PipelineReport:
        names = (f"{name}/attention/0",) if self.members is None else self.members
        serving = name not in self.ailing
        number = 1 if self._sole else 2
        return report(name, num_attention=number, attention=names, serving=serving)

    async def _submit(
        self, requests: Sequence[GenerateRequest], pipeline: str | None
    ) -> list[str | None]:
        assert IN_A_REQUEST.get(None) is None, "Serve gives calls of one request one id"
        self.calls.append((pipeline, list(requests)))
        while not self.actors:
            await asyncio.sleep(0.1)
        await self.answering.wait()
        if pipeline in self.stuck:
            await asyncio.Event().wait()
        if self.none:
            return [None] * len(requests)
        name = pipeline if pipeline in self.actors else next(iter(self.actors))
        able = [one.weights in ("", weights_of(name)) for one in requests]
        return [f"{name}/attention/0" if fit else None for fit in able]

    def connect(
        self,
        name: str,
        _namespace: str,
        _ingress_id: str,
        on_events: Callable[[str, StepEvents], None],
        on_refused: Callable[[list[str]], None],
    ) -> Connection:
        pipeline = name.split("/")[0]
        actor = None if pipeline in self.unreachable else self.actors.get(pipeline)
        return Connection(name, actor, on_events, on_refused)

    def say(self, name: str, request: GenerateRequest, *token_ids: int, end: bool = False) -> None:
        event = TokenEvent(request.request_id, token_ids, finish_reason="stop" if end else None)
        self.actors[name].outbox.put_nowait([event])

    def kill(self, name: str) -> None:
        self.actors.pop(name).outbox.put_nowait(None)


@contextmanager
def clocked(world: World) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    clock = SimpleNamespace(monotonic=loop.time)
    with (
        mock.patch("actors.ingress.pipeline_client.time", clock),
        mock.patch("actors.ingress.submitter.time", clock),
        mock.patch("actors.ingress.fleet.time", clock),
        mock.patch("actors.ingress.actor_links.ActorLink", world.connect),
    ):
        yield


def play(world: World, scenario: Any, **settings: Any) -> None:
    async def work() -> None:
        IN_A_REQUEST.set(True)
        with clocked(world):
            choice = PipelineChoice(Assigner(4))
            fields = {"asleep_is_ready": False, **settings}
            fleet = Fleet(world, world, "ns", "m", ("i", RequestMetrics()))  # type: ignore[arg-type]
            client = PipelineClient(world, "ns", "i", fleet, 60.0, choice, **fields)  # type: ignore[arg-type]
            client.ready()  # begins to look
            await turns()
            await scenario(client)
            client._fleet._poll.cancel()  # type: ignore[union-attr]
            for task in list(client._submitter._tasks):
                task.cancel()
            await turns()

    run(work())


def asking(name: str = "r") -> GenerateRequest:
    return GenerateRequest(name, "i", (1, 2, 3), SamplingParams(8, seed=0))


def collect(client: PipelineClient, name: str = "r") -> asyncio.Task[list[int]]:
    """The tokens of one request."""

    async def tokens() -> list[int]:
        return [token async for event in client.generate(asking(name)) for token in event.token_ids]

    return start(tokens())


def start(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.get_running_loop().create_task(work)
