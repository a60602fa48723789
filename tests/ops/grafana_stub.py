"""A small HTTP server that asks of a client what Grafana's API asks: folders and dashboards."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "glsa_secret"
Answer = tuple[int, dict[str, Any]]


@dataclass
class Grafana:
    """What it holds, and every write that it took."""

    url: str = ""
    folders: dict[str, str] = field(default_factory=dict)  # uid -> title
    dashboards: dict[str, dict[str, Any]] = field(default_factory=dict)  # with id and version
    folder_of: dict[str, str] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    before_save: Callable[[], None] = field(default=lambda: None)

    def answer(self, method: str, path: str, token: str, body: dict[str, Any]) -> Answer:
        """As the HTTP API's documentation has it."""
        if token != f"Bearer {TOKEN}":
            return 401, {"message": "invalid API key"}
        match method, path.split("/")[2:]:
            case "GET", ["folders", uid]:
                if uid not in self.folders:
                    return 404, {"message": "folder not found"}
                return 200, {"uid": uid, "title": self.folders[uid]}
            case "POST", ["folders"]:
                return self._create_folder(body)
            case "GET", ["dashboards", "uid", uid]:
                if uid not in self.dashboards:
                    return 404, {"message": "Dashboard not found"}
                meta = {
                    "folderUid": self.folder_of[uid],
                    "version": self.dashboards[uid]["version"],
                }
                return 200, {"meta": meta, "dashboard": self.dashboards[uid]}
            case "POST", ["dashboards", "db"]:
                self.before_save()
                return self._save(body)
        return 404, {"message": f"no {method} {path} here"}

    def _create_folder(self, body: dict[str, Any]) -> Answer:
        if not body.get("title"):
            return 400, {"message": "folder title cannot be empty"}
        if body["uid"] in self.folders:
            return 412, {"message": "the folder has been changed by someone else"}
        self.folders[body["uid"]] = body["title"]
        self.writes.append(body["uid"])
        return 200, {"uid": body["uid"], "title": body["title"]}

    def _save(self, body: dict[str, Any]) -> Answer:
        wanted, folder = body["dashboard"], body.get("folderUid", "")
        uid = wanted["uid"]
        if not wanted.get("title"):
            return 400, {"message": "Dashboard title cannot be empty"}
        if len(uid) > 40:
            return 400, {"message": "uid too long, max 40 characters"}
        if folder and folder not in self.folders:
            return 400, {"message": "folder not found"}
        there = self.dashboards.get(uid)
        if there is None and wanted.get("id") is not None:
            return 404, {"message": "Dashboard not found"}
        stale = there is not None and wanted.get("version") != there["version"]
        if stale and not body.get("overwrite"):
            return 412, {"status": "version-mismatch", "message": "changed by someone else"}
        same_title = [
            other
            for other, one in self.dashboards.items()
            if other != uid and one["title"] == wanted["title"] and self.folder_of[other] == folder
        ]
        if same_title:
            return 412, {"status": "name-exists", "message": "a dashboard with the same name"}
        number = len(self.dashboards) + 1 if there is None else there["id"]
        version = 1 if there is None else there["version"] + 1
        self.dashboards[uid] = {**wanted, "id": number, "version": version}
        self.folder_of[uid] = folder
        self.writes.append(uid)
        return 200, {"uid": uid, "version": version, "status": "success"}


@contextmanager
def grafana_server() -> Iterator[Grafana]:
    """The server, until the block ends."""
    grafana = Grafana()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply("GET")

        def do_POST(self) -> None:
            self._reply("POST")

        def _reply(self, method: str) -> None:
            size = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(size)) if size else {}
            token = self.headers.get("authorization", "")
            status, answer = grafana.answer(method, self.path, token, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    grafana.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield grafana
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
