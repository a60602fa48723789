"""Streams that ask again as soon as they are answered, and what became of every request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from typing import Literal

import httpx

from ops.chaos.pool import Request
from ops.client import key_header

SILENCE_S = 180.0
_CONNECT_TIMEOUT_S = 10.0
_PAUSE_AFTER_FAILURE_S = 0.5  # a server that refuses must not be hammered
_MAX_REASON_CHARS = 200
_PROXY_STATUSES = (
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)

# status: not 200; proxy: 502 to 504 that the ingress did not write; error: an event of one;
# broken: the connection; unfinished: an end without a finish reason and [DONE]; silent: no byte
FailureKind = Literal["status", "proxy", "error", "broken", "unfinished", "silent"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no whole answer."""

    kind: FailureKind
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request. Times are perf_counter()'s, one for each event with tokens."""

    request: int  # index in the pool
    sent_s: float
    ended_s: float
    event_times_s: tuple[float, ...]
    token_ids: tuple[int, ...]
    failure: Failure | None


def stream_client(
    url: str, silence_s: float = SILENCE_S, api_key: str | None = None
) -> httpx.AsyncClient:
    """A client with a new connection for every request: none is found dead on its second use."""
    return httpx.AsyncClient(
        base_url=url,
        headers=key_header(api_key),
        timeout=httpx.Timeout(silence_s, connect=_CONNECT_TIMEOUT_S, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        trust_env=False,  # the server is on this machine, whatever proxy the environment names
    )


async def ask(
    client: httpx.AsyncClient, model: str, request: Request, events: Events | None = None
) -> Outcome:
    """Send one request and read its answer to the end, however it ends.

    `events` gets what arrives, for who wants to look on meanwhile.
    """
    events = Events() if events is None else events
    sent_s = events.sent_s
    try:
        async with client.stream(
            "POST",
            "/v1/completions",
            content=request.body(model),
            headers={"content-type": "application/json"},
        ) as response:
            if response.status_code == HTTPStatus.OK:
                async for piece in response.aiter_bytes():
                    events.feed(perf_counter(), piece)
                failure = events.failure()
            else:
                failure = _refusal(response.status_code, await response.aread())
    except httpx.ReadTimeout:
        failure = Failure("silent", f"no byte for {client.timeout.read:g} s")
    except httpx.TransportError as error:
        failure = Failure("broken", str(error)[:_MAX_REASON_CHARS] or type(error).__name__)
    return Outcome(
        request.index,
        sent_s,
        perf_counter(),
        tuple(events.times_s),
        tuple(events.token_ids),
        failure,
    )


class Load:
    """`streams` workers over one sequence of requests, until that or `stop` ends them."""

    def __init__(self, client: httpx.AsyncClient, model: str, streams: int) -> None:
        self.outcomes: list[Outcome] = []  # of the run that goes on
        self._client = client
        self._model = model
        self._streams = streams
        self._stopping = False
        self._live: set[Events] = set()

    def has_moved_since(self, time_s: float) -> bool:
        """Whether all that was in flight then has had tokens since, or has ended."""
        return all(
            events.sent_s > time_s or (events.times_s and events.times_s[-1] > time_s)
            for events in self._live
        )

    def stop(self) -> None:
        """Send nothing new; what is in flight is read to its end."""
        self._stopping = True

    async def run(self, requests: Iterable[Request]) -> list[Outcome]:
        """Work the requests off; returns their outcomes in the order of their ends."""
        self.outcomes = []  # a new one: what was returned before stays as it is
        self._stopping = False
        shared = iter(requests)
        async with asyncio.TaskGroup() as workers:
            for _ in range(self._streams):
                workers.create_task(self._work(shared))
        return self.outcomes

    async def _work(self, requests: Iterator[Request]) -> None:
        while not self._stopping:
            request = next(requests, None)
            if request is None:
                return
            events = Events()
            self._live.add(events)
            try:
                outcome = await ask(self._client, self._model, request, events)
            finally:
                self._live.discard(events)
            self.outcomes.append(outcome)
            if outcome.failure is not None:
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)


class Events:
    """Server-sent events of one completion. Lines end at line feeds only: text may hold U+2028."""

    def __init__(self) -> None:
        self.sent_s = perf_counter()
        self.times_s: list[float] = []
        self.token_ids: list[int] = []
        self._rest = b""
        self._finished = False
        self._done = False
        self._failure: Failure | None = None

    def feed(self, time_s: float, piece: bytes) -> None:
        """Bytes of the body, in any cut, and when they came."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and self._failure is None:
                self._take(time_s, line.removeprefix(b"data:").strip())

    def failure(self) -> Failure | None:
        """At the end of the body: what was wrong with it."""
        if self._failure is not None or (self._finished and self._done):
            return self._failure
        return Failure("unfinished", f"the stream ended after {len(self.token_ids)} tokens")

    def _take(self, time_s: float, data: bytes) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        try:
            event = json.loads(data)
            if "error" in event:
                self._failure = Failure("error", str(event["error"]["message"]))
                return
            token_ids = [int(i) for choice in event["choices"] for i in choice["token_ids"]]
            self._finished |= any(choice["finish_reason"] for choice in event["choices"])
        except (ValueError, LookupError, TypeError):
            text = data[:_MAX_REASON_CHARS].decode(errors="replace")
            self._failure = Failure("error", f"not an event of a completion: {text}")
            return
        if token_ids:
            self.times_s.append(time_s)
            self.token_ids += token_ids


def _refusal(status: int, body: bytes) -> Failure:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        text = " ".join(body.decode(errors="replace").split())[:_MAX_REASON_CHARS]
        kind: FailureKind = "proxy" if status in _PROXY_STATUSES else "status"
        return Failure(kind, f"status {status}: {text}")
    return Failure("status", f"status {status}: {message[:_MAX_REASON_CHARS]}")
