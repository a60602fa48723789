"""The HTTP surface on a loopback port, over a token source that says what a test scripts."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn
from sentencepiece import SentencePieceProcessor

from actors.http.api import create_api
from actors.http.errors import ApiError
from actors.http.request_metrics import RequestMetrics
from actors.http.serving_state import ServingState
from actors.messages import GenerateRequest, TokenEvent
from actors.metrics.metric_table import RUNNING
from actors.metrics.metrics_text import metrics_text
from actors.placement.placement_messages import ChangeOutcome, PlacementChange
from model.chat_template import InstructFormat
from model.tokenizer import Tokenizer

MODEL = "mixtral-test"
MAX_MODEL_LEN = 256
Step = TokenEvent | ApiError | Exception | None  # None: wait until the client gives up
Script = Callable[[GenerateRequest], list[Step]]


@cache
def tokenizer() -> Tokenizer:
    """Mixtral's own, as published."""
    path = Path(str(files("mistral_common"))) / "data" / "tokenizer.model.v1"
    return Tokenizer(SentencePieceProcessor(model_file=str(path)))


def ids_of(text: str) -> list[int]:
    return tokenizer().encode(text, add_bos=False)


def says(text: str, finish: str = "stop", per_event: int = 1) -> Script:
    """The tokens of `text`, then EOS where `finish` is "stop"; `per_event` tokens at a time."""

    def script(request: GenerateRequest) -> list[Step]:
        ids = ids_of(text) + ([tokenizer().eos_id] if finish == "stop" else [])
        groups = [tuple(ids[i : i + per_event]) for i in range(0, len(ids), per_event)]
        steps: list[Step] = [TokenEvent(request.request_id, group) for group in groups[:-1]]
        if finish == "stop":
            end = TokenEvent(request.request_id, groups[-1], None, "stop", tokenizer().eos_id)
        else:
            end = TokenEvent(request.request_id, groups[-1], None, "length")
        return [*steps, end]

    return script


def gives(numbers: Sequence[float]) -> Script:
    """The vector of a pooled request."""
    vector = struct.pack(f"<{len(numbers)}f", *numbers)
    return lambda r: [TokenEvent(r.request_id, (), None, "stop", vector=vector)]


class FakeSource:
    """A TokenSource that runs a script for each request and remembers what became of it."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[GenerateRequest] = []
        self.closed: list[str] = []  # request ids whose generators were closed before their end
        self.waiting = threading.Event()  # a script came to its None
        self.closings = threading.Semaphore(0)
        self.is_ready = True
        self.request_metrics = RequestMetrics()
        self.changes: list[PlacementChange] = []
        self.change_answer: ChangeOutcome | Exception = ChangeOutcome(())

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        self.requests.append(request)
        ended = False
        try:
            for step in self.script(request):
                if step is None:
                    self.waiting.set()
                    await asyncio.Event().wait()
                elif isinstance(step, Exception):
                    ended = True
                    raise step
                else:
                    ended = step.finish_reason is not None
                    yield step
        finally:
            if not ended:
                # An abort travels: awaiting here must work whatever closes the generator.
                await asyncio.sleep(0)
                self.closed.append(request.request_id)
                self.closings.release()

    async def experts(self) -> dict[str, object]:
        return {"placement_version": 3, "balancedness": 1.0}

    async def change(self, change: PlacementChange) -> ChangeOutcome:
        self.changes.append(change)
        if isinstance(self.change_answer, Exception):
            raise self.change_answer
        return self.change_answer

    async def metrics(self) -> str:
        return metrics_text(self.request_metrics.counts(), {(RUNNING.name, "p0", "0"): 2.0}, MODEL)

    def ready(self) -> bool:
        return self.is_ready


def make_state(script: Script | None = None, **changes: Any) -> ServingState:
    fields: dict[str, Any] = {
        "model_name": MODEL,
        "tokenizer": tokenizer(),
        "chat_format": InstructFormat(tokenizer()),
        "max_model_len": MAX_MODEL_LEN,
        "vocab_size": 32000,
        "source": FakeSource(script or says("Hello there")),
        "metrics": RequestMetrics(),
        "started_s": 1_700_000_000,
        "version": "9.9.9",
    }
    state = ServingState(**(fields | changes))
    source_of(state).request_metrics = state.metrics
    return state


def source_of(state: ServingState) -> FakeSource:
    assert isinstance(state.source, FakeSource)
    return state.source


class _Server(uvicorn.Server):
    """Says when it is up, and stops when told instead of looking every 100 ms."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = threading.Event()

    async def main_loop(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.is_up.set()
        await self._stop.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)


@contextmanager
def serving(state: ServingState, http: str = "auto") -> Iterator[httpx.Client]:
    """A client of a real server; `http` is uvicorn's choice of protocol parser."""
    config = uvicorn.Config(create_api(state), http=http, log_level="critical", lifespan="off")
    server = _Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert server.is_up.wait(10)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=10) as client:
                yield client
        finally:
            server.stop()
            thread.join(10)
    assert not thread.is_alive()
    assert state.num_in_flight == 0


def official(base_url: object) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)


def chat_body(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]} | changes


def sse_events(response: httpx.Response) -> list[Any]:
    """The data of each event; the text must be nothing but events, split at line feeds."""
    *blocks, rest = response.content.decode().split("\n\n")
    assert rest == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [
        "DONE" if block == "data: [DONE]" else json.loads(block.removeprefix("data: "))
        for block in blocks
    ]
