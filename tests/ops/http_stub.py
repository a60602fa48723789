"""A real HTTP server on a free loopback port that answers what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_FOR_THE_CLIENT_TO_LEAVE = b""


@dataclass(frozen=True)
class Reply:
    """A whole body, or chunks that are sent one by one; the connection ends behind them."""

    status: int = 200
    chunks: Iterable[bytes] = ()
    content_type: str = "application/json"


def json_reply(body: object, status: int = 200) -> Reply:
    return Reply(status, [json.dumps(body).encode()])


def error_reply(status: int, message: str) -> Reply:
    error = {"message": message, "type": "t", "param": None, "code": None}
    return json_reply({"error": error}, status)


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def delta(**fields: object) -> bytes:
    choice = {"index": 0, "delta": fields, "finish_reason": None}
    return event({"object": "chat.completion.chunk", "choices": [choice]})


def says(*pieces: str) -> Reply:
    """A streamed chat answer as OpenAI's: a role, the pieces, an end, the usage, [DONE]."""
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    chunks = [delta(role="assistant", content="")]
    chunks += [delta(content=piece) for piece in pieces]
    chunks += [event({"choices": [end]}), event({"choices": [], "usage": {}}), b"data: [DONE]\n\n"]
    return Reply(200, chunks, "text/event-stream")


@dataclass
class Stub:
    """Its address, what it answers to a path, and the bodies that came: chats, and others."""

    url: str
    replies: dict[str, Reply] = field(default_factory=dict)
    chat: Callable[[dict[str, Any]], Reply] = field(default=lambda _body: says("Hello"))
    bodies: list[dict[str, Any]] = field(default_factory=list)
    posts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # (path, body)
    client_left: threading.Event = field(default_factory=threading.Event)


@contextmanager
def stub_server() -> Iterator[Stub]:
    """The server, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send_reply_to_path()

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            body: dict[str, Any] = json.loads(raw)
            if self.path == "/v1/chat/completions":
                stub.bodies.append(body)
                self._send(stub.chat(body))
            else:
                stub.posts.append((self.path, body))
                self._send_reply_to_path()

        def _send_reply_to_path(self) -> None:
            missing = error_reply(404, f"there is no {self.path} here")
            self._send(stub.replies.get(self.path, missing))

        def _send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            self.send_header("content-type", reply.content_type)
            self.end_headers()
            for chunk in reply.chunks:
                if chunk == WAIT_FOR_THE_CLIENT_TO_LEAVE:
                    if self.connection.recv(1) == b"":
                        stub.client_left.set()
                    return
                self.wfile.write(chunk)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub = Stub(f"http://127.0.0.1:{server.server_address[1]}")
    stub.replies["/v1/models"] = json_reply({"data": [{"id": "demo"}]})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
