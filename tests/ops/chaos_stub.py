"""A server that streams completions as a test tells it to, with processes that can be struck."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[[dict[str, Any]], AsyncIterator[bytes]]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


def event(token_ids: list[int], finish_reason: str | None = None, text: str = "x") -> bytes:
    choice = {"index": 0, "text": text, "token_ids": token_ids, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


def tokens_of(body: dict[str, Any]) -> list[int]:
    """What the stub's model answers: a function of the request alone."""
    start = sum(body["prompt"]) + 7 * body.get("seed", 0)
    return [(start + i * i) % 997 for i in range(body["max_tokens"])]


async def answer(body: dict[str, Any]) -> AsyncIterator[bytes]:
    """As a server should: one event for every token."""
    yield HEAD
    token_ids = tokens_of(body)
    for token_id in token_ids[:-1]:
        yield chunk(event([token_id]))
        await asyncio.sleep(0.002)
    yield chunk(event(token_ids[-1:], "length")) + chunk(DONE) + LAST_CHUNK


def stand_in(title: str) -> subprocess.Popen[bytes]:
    """A process that shows `title` where Ray's workers show theirs, and waits to be struck."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    return subprocess.Popen([title, "600"], executable=sleep)


@dataclass
class Stub:
    """What it answers; counters can be set by a test at any time."""

    url: str = ""
    answer: Answer = answer
    actors: dict[tuple[str, int], subprocess.Popen[bytes]] = field(default_factory=dict)
    replaced: list[dict[str, Any]] = field(default_factory=list)
    running: float = 0.0

    def spawn(self, role: str, rank: int) -> None:
        self.actors[role, rank] = stand_in(f"ray::{role.capitalize()}Actor")

    def get(self, path: str) -> bytes:
        """The body of a GET; the dead are replaced when somebody asks who is there."""
        if path == "/v1/models":
            return json.dumps({"data": [{"id": "stub", "max_model_len": 100}]}).encode()
        if path == "/v1/experts":
            return json.dumps(self._experts()).encode()
        if path == "/metrics":
            return (
                f'windrose_num_requests_running{{rank="0"}} {self.running}\n'
                'windrose_num_requests_waiting{rank="0"} 0\n'
                'windrose_kv_cache_usage_perc{rank="0"} 0\n'
                f"windrose_recoveries_total {len(self.replaced)}\n"
            ).encode()
        assert path == "/health"
        return b"{}"

    def _experts(self) -> dict[str, Any]:
        for (role, rank), process in list(self.actors.items()):
            if process.poll() is not None:
                at_s = float(len(self.replaced))
                self.replaced.append(
                    {"cause": "death", "dead": [[role, rank]], "at_s": at_s, "total_s": 0.5}
                )
                self.spawn(role, rank)
        actors = [
            {"role": role, "rank": rank, "pid": process.pid, "phase": "serving", "pipeline": "p"}
            for (role, rank), process in self.actors.items()
        ]
        return {"actors": actors, "recoveries": self.replaced}


@contextmanager
def chaos_stub(*actors: tuple[str, int]) -> Iterator[Stub]:
    """The stub on a free loopback port, with these actors, until the block ends."""
    stub = Stub()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path = head.split()[:2]
            if method == "GET":
                body = stub.get(path)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            else:
                headers = dict(line.lower().split(": ") for line in head.splitlines()[1:] if line)
                sent = await reader.readexactly(int(headers["content-length"]))
                async for piece in stub.answer(json.loads(sent)):
                    writer.write(piece)
                    await writer.drain()
        except ConnectionError:
            pass  # the client left
        finally:
            writer.close()

    async def serve(ready: threading.Event) -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await asyncio.to_thread(stopping.wait)
        server.close()

    ready, stopping = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve(ready)))
    thread.start()
    try:
        for role, rank in actors:
            stub.spawn(role, rank)
        assert ready.wait(10.0)
        yield stub
    finally:
        stopping.set()
        thread.join()
        for process in stub.actors.values():
            process.kill()
            process.wait()
