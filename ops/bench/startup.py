"""From the start of a server to its first token, what it takes then, and how long it ends."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from cluster.local_ray import free_ports
from cluster.start_phases import Phases, read_phases
from ops.bench.completions import Target
from ops.bench.http_stream import Endpoint
from ops.bench.report import Report, over_rounds, shown, table
from ops.bench.sending import run_burst
from ops.client import ServerError, connect, served_model
from ops.server_process import ServerProcess

# Text, which every server takes, and no field that is not OpenAI's.
_PROMPT = "The quick brown fox"

_FROM_ROOT = re.compile(r"(?<![^=])/.*", re.DOTALL)  # a whole word, or what NAME= is set to

_TELLING_S = 1.0
_POLL_S = 0.02

_HEADINGS = {
    "healthy_s": "healthy s",
    "first_token_s": "first token s",
    "exit_s": "exit s",
    "rss_bytes": "RSS GB",
    "pss_bytes": "PSS GB",
    "processes": "processes",
}


@dataclass(frozen=True, slots=True)
class StartupBench:
    """One run: the words of a command with {port} in one of them, again and again."""

    model: str
    command: tuple[str, ...]
    rounds: int


@dataclass(frozen=True, slots=True)
class Start:
    """One round. Times count from the start of the process, `exit_s` from SIGTERM."""

    healthy_s: float
    first_token_s: float
    rss_bytes: int
    pss_bytes: int
    processes: int
    exit_s: float | None
    faults: tuple[str, ...]
    phases: Phases | None  # as the server printed them; others than ours do not


def bench_startup(bench: StartupBench) -> Report:
    """Start, ask and stop the server in every round; progress goes to stderr.

    A server that does not end with status 0, or leaves a process, counts as an error.

    Raises:
        ValueError: the command has no {port}.
        OSError: there is no such program.
        ServerError: the server does not start or does not answer.
    """
    starts = []
    for index in range(bench.rounds):
        start = start_once(bench.command)
        starts.append(start)
        print(
            f"round {index + 1} of {bench.rounds}: healthy after {start.healthy_s:.3g} s, "
            f"first token after {start.first_token_s:.3g} s, "
            f"{start.pss_bytes / 1e9:.3g} GB, ended in {shown(start.exit_s)} s",
            file=sys.stderr,
            flush=True,
        )
    result: dict[str, Any] = {
        key: over_rounds([getattr(start, key) for start in starts]) for key in _HEADINGS
    }
    result["phases_s"] = over_phases([start.phases for start in starts])
    faults = [fault for start in starts for fault in start.faults]
    result |= {"errors": len(faults), "error_messages": faults}
    config = {
        "model": Path(bench.model).resolve().name,
        "command": without_paths(bench.command),
        "rounds": bench.rounds,
    }
    return Report("startup", config, [result], _table(result))


def start_once(command: Sequence[str]) -> Start:
    """One server from start to end; see bench_startup."""
    [port] = free_ports(1)
    server = ServerProcess("the server", filled(command, port), port)
    try:
        healthy_s = server.wait_until_ready()
        with connect(server.url) as client:
            model = served_model(client)
        target = Target(
            Endpoint.of(server.url, "/v1/completions"), model, fields={}, needs_done=False
        )
        [first] = run_burst(target, [_PROMPT], 1)
        if first.error is not None:
            raise ServerError(f"its first answer: {first.error}")
        memory = server.memory()
        phases = _told_phases(server)
    finally:
        ended = server.stop()
    faults = [f"{process} was left" for process in ended.left]
    if ended.status != 0:
        faults.insert(0, f"status {ended.status} after SIGTERM")
    return Start(
        healthy_s=healthy_s - server.started_s,
        first_token_s=first.began_s + first.arrivals[0].time_s - server.started_s,
        rss_bytes=memory.rss_bytes,
        pss_bytes=memory.pss_bytes,
        processes=memory.processes,
        exit_s=ended.exit_s,
        faults=tuple(faults),
        phases=phases,
    )


def _told_phases(server: ServerProcess) -> Phases | None:
    """What it prints of them, which may be a moment after its first answer; None: nothing."""
    deadline_s = perf_counter() + _TELLING_S
    while (told := read_phases(server.printed)) is None and perf_counter() < deadline_s:
        sleep(_POLL_S)
    return told


def over_phases(rounds: Sequence[Phases | None]) -> dict[str, Any] | None:
    """Every phase over the rounds; None where a server does not say where its time went."""
    told = [phases for phases in rounds if phases is not None]
    if not told or len(told) < len(rounds):
        return None
    return {name: over_rounds([phases[name] for phases in told]) for name in told[0]}


def filled(command: Sequence[str], port: int) -> list[str]:
    """The command with the port in it.

    Raises:
        ValueError: it has no place for one.
    """
    words = [word.replace("{port}", str(port)) for word in command]
    if words == list(command):
        raise ValueError(f"{' '.join(command)!r} has no {{port}}: where is it to listen?")
    return words


def without_paths(command: Sequence[str]) -> list[str]:
    """The words as a result shows them: where a file lies on this machine is nobody's concern.

    So of /a/b and NAME=/a/b, the latter a list of places as well, only b is shown.
    """
    return [_FROM_ROOT.sub(lambda path: Path(path[0]).name, word) for word in command]


def _table(result: dict[str, Any]) -> str:
    scaled = {key: _in_gb(result[key]) if "bytes" in key else result[key] for key in _HEADINGS}
    cells = [shown(scaled[key]) for key in _HEADINGS]
    text = f"{table(list(_HEADINGS.values()), [cells])}\nmedian (min-max) over rounds"
    phases = result["phases_s"]
    if phases is None:
        return text
    spans = table([f"{name} s" for name in phases], [[shown(span) for span in phases.values()]])
    return f"{text}\n\n{spans}"


def _in_gb(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: summary[key] / 1e9 for key in ("median", "min", "max")}
