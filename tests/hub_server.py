"""A server that speaks as much of the hub's API as models are fetched with, and remembers all."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubServer:
    """Repositories by name, each a directory; weights are redirected to, as large files are."""

    repositories: dict[str, Path]
    gated: frozenset[str] = frozenset()
    tokens: set[str] = field(default_factory=set)  # seen
    fetched: list[tuple[str, str | None]] = field(default_factory=list)  # file, range: each GET
    commit: str = COMMIT
    url: str = ""
    large_url: str = ""  # of another host, which no HEAD request follows to

    def whole(self, suffix: str = ".safetensors") -> list[str]:
        """Files of this kind that were fetched from their beginning to their end, sorted."""
        return sorted(name for name, part in self.fetched if name.endswith(suffix) and part is None)

    def forget(self) -> None:
        self.fetched.clear()


@contextmanager
def hub_server(
    repositories: dict[str, Path], gated: frozenset[str] = frozenset()
) -> Iterator[HubServer]:
    hub = HubServer(repositories, gated)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            if token := self.headers.get("authorization"):
                hub.tokens.add(token.removeprefix("Bearer "))
            parts = unquote(self.path.split("?")[0]).strip("/").split("/")
            if parts[0] == "large":
                self._send_file(hub.repositories["/".join(parts[1:3])] / parts[3])
            elif parts[:2] == ["api", "models"]:
                self._repository("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
            elif len(parts) == 5 and parts[2] == "resolve":
                self._resolve("/".join(parts[:2]), parts[3], parts[4])
            else:
                self._refuse(404, "EntryNotFound")

        def _known(self, name: str, revision: str) -> bool:
            if name not in hub.repositories:
                self._refuse(401, "RepoNotFound")
            elif name in hub.gated:
                self._refuse(403, "GatedRepo")
            elif revision not in ("main", hub.commit):
                self._refuse(404, "RevisionNotFound")
            else:
                return True
            return False

        def _repository(self, name: str, revision: str) -> None:
            if not self._known(name, revision):
                return
            names = sorted(one.name for one in hub.repositories[name].iterdir())
            body = {
                "id": name,
                "modelId": name,
                "sha": hub.commit,
                "siblings": [{"rfilename": one} for one in names],
            }
            self._send(200, json.dumps(body).encode(), {"content-type": "application/json"})

        def _resolve(self, name: str, revision: str, file: str) -> None:
            if not self._known(name, revision):
                return
            path = hub.repositories[name] / file
            told = {"x-repo-commit": hub.commit}
            if not path.exists():
                self._refuse(404, "EntryNotFound")
            elif file.endswith(".safetensors"):
                told |= {
                    "x-linked-etag": f'"{_digest(path)}"',
                    "x-linked-size": str(path.stat().st_size),
                    "location": f"{hub.large_url}/large/{name}/{file}",
                }
                self._send(302, b"", told)
            else:
                self._send_file(path, told)

        def _send_file(self, path: Path, told: dict[str, str] | None = None) -> None:
            data, part = path.read_bytes(), self.headers.get("range")
            status, headers = 200, {"etag": f'"{_digest(path)}"', **(told or {})}
            if self.command == "GET":
                hub.fetched.append((path.name, part))
            if part is not None:
                begin, end = part.removeprefix("bytes=").split("-")
                last = min(int(end or len(data)), len(data) - 1)
                headers["content-range"] = f"bytes {begin}-{last}/{len(data)}"
                status, data = 206, data[int(begin) : last + 1]
            self._send(status, data, headers)

        def _refuse(self, status: int, code: str) -> None:
            told = {"x-error-code": code, "x-error-message": code, "x-repo-commit": hub.commit}
            self._send(status, b"", told)

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.large_url = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
