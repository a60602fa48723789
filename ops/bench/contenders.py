"""The servers of a comparison: how they are started, kept idle, asked and stopped."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from cluster.local_ray import free_ports
from ops.bench.completions import OWN_FIELDS, Target
from ops.bench.http_stream import Endpoint
from ops.bench.startup import filled
from ops.client import connect, served_model
from ops.server_process import ServerProcess

OWN_NAME = "windrose"

# Where servers say what they are: Windrose and vLLM, llama-server.
_VERSION_KEYS = (("/version", "version"), ("/props", "build_info"))


@dataclass(frozen=True, slots=True)
class Contender:
    """A server to be measured: the words of its command, with {port} in one of them.

    `fields` are sent with each request beside OpenAI's, and win over them.
    """

    name: str
    command: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=lambda: OWN_FIELDS)


class Running:
    """A contender that has been started and answers."""

    def __init__(self, contender: Contender, prompt_text: bool) -> None:
        """Start it and wait.

        Raises:
            ValueError: its command has no {port}.
            OSError: there is no such program.
            ServerError: it does not start, or lists no model.
        """
        [port] = free_ports(1)
        self.name = contender.name
        self.warm: set[object] = set()  # the workloads it has met
        self._server = ServerProcess(contender.name, filled(contender.command, port), port)
        try:
            self._server.wait_until_ready()
            with connect(self._server.url) as client:
                model = None if "model" in contender.fields else served_model(client)
                self.version = _version(client)
        except BaseException:
            self.stop()
            raise
        self.target = Target(
            Endpoint.of(self._server.url, "/v1/completions"),
            model,
            contender.fields,
            prompt_text=prompt_text,
            needs_done=contender.name == OWN_NAME,
        )

    def cpu_s(self) -> dict[int, float]:
        """Processor time of its processes so far."""
        return self._server.cpu_s()

    def stop(self) -> None:
        """End it and all that it started."""
        self._server.stop()


class Lineup:
    """All contenders, running at once; or with `restart` one at a time, anew for every visit."""

    def __init__(
        self, contenders: Sequence[Contender], *, prompt_text: bool, restart: bool
    ) -> None:
        self._contenders = {one.name: one for one in contenders}
        self._prompt_text = prompt_text
        self._restart = restart
        self._running: dict[str, Running] = {}
        self.versions: dict[str, str | None] = dict.fromkeys(self._contenders)

    def visit(self, name: str, *, anew: bool) -> Running:
        """The contender, started if need be; `anew` where a visit begins."""
        if self._restart and anew:
            self.stop()
        for other in [name] if self._restart else self._contenders:
            if other not in self._running:
                print(f"starting {other}", file=sys.stderr, flush=True)
                running = Running(self._contenders[other], self._prompt_text)
                self._running[other] = running
                self.versions[other] = running.version
        return self._running[name]

    def others(self, name: str) -> list[Running]:
        """Those that are up beside it, and have nothing to do."""
        return [running for other, running in self._running.items() if other != name]

    def stop(self) -> None:
        """End all that run."""
        while self._running:
            _, running = self._running.popitem()
            running.stop()


@contextmanager
def lineup_of(
    contenders: Sequence[Contender], *, prompt_text: bool, restart: bool
) -> Iterator[Lineup]:
    """They; whatever happens, none of them runs on."""
    lineup = Lineup(contenders, prompt_text=prompt_text, restart=restart)
    try:
        yield lineup
    finally:
        lineup.stop()


def _version(client: httpx.Client) -> str | None:
    for path, key in _VERSION_KEYS:
        try:
            response = client.get(path)
            if response.is_success:
                return str(response.json()[key])
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            continue
    return None
