"""A small server with OpenAI's /v1/completions, to be started as a process of its own.

It says when it starts, what it is asked and when it is told to end, on stdout and in `--log`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any

STANDARD = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}


class Server:
    """What the flags make of it."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self.flags = flags
        self.started_s = time.monotonic()
        self.asked_before = False
        self.held = bytearray(b"x") * (flags.hold_mb << 20)
        self.seats = threading.Semaphore(flags.at_most or 1_000_000)
        self.child = subprocess.Popen(["sleep", "600"]) if flags.child else None

    def say(self, *words: object) -> None:
        line = " ".join(map(str, (self.flags.name, *words))) + "\n"
        os.write(1, line.encode())
        if self.flags.log is not None:
            with self.flags.log.open("a") as file:
                file.write(line)

    def end(self, _number: int, _frame: FrameType | None) -> None:
        self.say("end")
        time.sleep(self.flags.end_s)
        if self.child is not None and not self.flags.leave_child:
            self.child.kill()
        os._exit(self.flags.status)

    def refusal(self, body: dict[str, Any]) -> tuple[int, str] | None:
        if not self.flags.strict:
            return None
        if unexpected := set(body) - STANDARD - {"own_field"}:
            return 422, f"Unexpected fields in the request: {sorted(unexpected)}"
        if not isinstance(body["prompt"], str):
            return 400, "prompt must be a string."
        return None

    def events(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        total = body["max_tokens"] - self.flags.cut
        with_ids = bool(body.get("return_token_ids")) and not self.flags.no_ids
        events = []
        for index in range(total):
            choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": None}
            if with_ids:
                choice["token_ids"] = [300 + index]
            if index == total - 1:
                choice["finish_reason"] = "length"
            events.append({"choices": [choice]})
        prompt = body["prompt"]
        length = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
        usage = {"prompt_tokens": length, "completion_tokens": total}
        return [*events, {"choices": [], "usage": usage}]


def handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    flags = server.flags

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ready = time.monotonic() - server.started_s >= flags.ready_s
            if self.path == "/health" and flags.late_path and not server.asked_before:
                server.asked_before = True
                self._answer(404, {})
            elif self.path == "/health" and not flags.no_health:
                self._answer(200 if ready else 503, {})
            elif self.path == "/v1/models" and (ready or flags.late_path):
                self._answer(200, {"data": [{"id": flags.name}]})
            elif self.path == "/version":
                self._answer(200, {"version": f"{flags.name} 1.5"})
            else:
                self._answer(404, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            fields = ",".join(sorted(set(body) - STANDARD)) or "-"
            kind = type(body["prompt"]).__name__
            server.say("asked", body["max_tokens"], kind, fields)
            if not server.seats.acquire(blocking=False):
                self._answer(429, {"error": {"message": "full"}})
                return
            try:
                self._complete(body)
            finally:
                server.seats.release()

        def _complete(self, body: dict[str, Any]) -> None:
            refusal = server.refusal(body)
            if refusal is not None:
                self._answer(refusal[0], {"error": {"message": refusal[1]}})
                return
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for event in server.events(body):
                time.sleep(flags.token_ms / 1e3)
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            if not flags.strict:
                self.wfile.write(b"data: [DONE]\n\n")

        def _answer(self, status: int, body: object) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="stub")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--ready-s", type=float, default=0.0, help="healthy only after so long")
    parser.add_argument("--end-s", type=float, default=0.0, help="from SIGTERM to the end")
    parser.add_argument("--status", type=int, default=0)
    parser.add_argument("--token-ms", type=float, default=0.0)
    parser.add_argument("--cut", type=int, default=0, help="so many tokens too few")
    parser.add_argument("--hold-mb", type=int, default=0)
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--leave-child", action="store_true")
    parser.add_argument("--no-ids", action="store_true", help="no return_token_ids")
    parser.add_argument("--no-health", action="store_true", help="no /health")
    parser.add_argument(
        "--late-path", action="store_true", help="/health is not there the first time, models are"
    )
    parser.add_argument("--strict", action="store_true", help="text only, OpenAI's fields, no end")
    parser.add_argument("--at-most", type=int, help="requests at once; more is answered with 429")
    parser.add_argument("--busy", action="store_true", help="never idle")
    parser.add_argument("--started", help="printed once, as a server says where its time went")
    server = Server(parser.parse_args())
    signal.signal(signal.SIGTERM, server.end)
    if server.flags.busy:
        threading.Thread(target=_spin, daemon=True).start()
    server.say("start", os.getpid())
    if server.flags.started is not None:
        os.write(1, f"{server.flags.started}\n".encode())
    ThreadingHTTPServer.request_queue_size = 256  # connections that come at one moment
    ThreadingHTTPServer(("127.0.0.1", server.flags.port), handler_of(server)).serve_forever()


def _spin() -> None:
    while True:
        pass


if __name__ == "__main__":
    main()
