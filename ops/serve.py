"""`windrose serve`: start, say where to talk to it, wait for a signal, drain, leave no trace."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from actors.log_lines import LogSettings
from cluster.local_ray import LocalRay, RayLost, join_cluster
from cluster.log_lines import hide_ray_lines
from cluster.placement import cpus_needed, deployment_bundles, room_to_grow
from configs.model_settings import BUILT_IN_FORMATS
from configs.schema import WindroseConfig
from ops.start_bars import show_start

if TYPE_CHECKING:  # they bring Ray or torch, which take seconds to import
    from cluster.launch import Starting
    from model.config import ModelConfig
    from model.head import Task

_LOOK_EVERY_S = 1.0  # at Ray's own processes
_SERVE_CPUS = 4  # Serve's controller and proxies, and room for their restarts
_LET_GO_S = 5.0  # after a signal, for what the start just asks of Ray

T = TypeVar("T")


class _Stop(BaseException):
    """A signal asked this process to end."""


def serve(config: WindroseConfig) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status.

    Joins the Ray cluster that RAY_ADDRESS names; starts one of its own otherwise.
    """
    console = Console(stderr=True)
    # Actors may have another working directory than this process.
    if not config.is_on_hub:
        config = config.model_copy(update={"model": str(Path(config.model).resolve())})
    if config.chat_template is not None and config.chat_template not in BUILT_IN_FORMATS:
        template = str(Path(config.chat_template).resolve())
        config = config.model_copy(update={"chat_template": template})
    if config.quantization_cache not in ("auto", "none"):
        kept = str(Path(config.quantization_cache).resolve())
        config = config.model_copy(update={"quantization_cache": kept})
    address = os.environ.get("RAY_ADDRESS")
    if not address and (obstacle := _why_not_bound(config)):
        console.print(f"windrose: {obstacle}", markup=False, highlight=False, soft_wrap=True)
        return 1
    if config.is_on_hub:
        console.print(f"windrose: looking for {config.model} on the hub", highlight=False)
    try:
        config, model, chats = _check(config)
    except ValueError as error:
        console.print(f"windrose: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    LogSettings.of(config).configure("windrose serve")
    if config.is_on_hub:
        told = f"windrose: commit {config.revision}; each actor fetches the files it needs"
        console.print(told, highlight=False, soft_wrap=True)
    signals = _Signals()
    own = None
    status = 1
    try:
        signals.install()
        ends_s = {"command": time.time()}
        if address:
            join_cluster(address)
        else:
            cpus = cpus_needed(config) + room_to_grow(config, model.num_experts) + _SERVE_CPUS
            own = LocalRay(cpus, config.shutdown_timeout_s, config.port)
            console.print("windrose: starting Ray on this machine")
            # While Ray's processes start, which is waiting, import what `_run` will need.
            Thread(target=import_module, args=("cluster.launch",), daemon=True).start()
            own.start(show_logs=True)
        ends_s["ray"] = time.time()
        signals.install()  # again: Ray has installed its own
        example = _example(model.head.task, chats)
        status = _run(config, console, signals, ends_s, example, own)
    except _Stop:
        status = 0
    except ConnectionError as error:
        console.print(f"windrose: RAY_ADDRESS={address}: {error}", markup=False, soft_wrap=True)
    finally:
        signals.ignore()
        if own is not None:
            own.stop()
    if own is not None and own.unanswered:
        # What Ray does at a process's exit waits for what has ended, and makes its files anew.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _run(
    config: WindroseConfig,
    console: Console,
    signals: _Signals,
    ends_s: Mapping[str, float],
    example: tuple[str, dict[str, object]],
    own: LocalRay | None,
) -> int:
    """`ends_s`: when the phases of the start before it ended. `example`: a request to try."""
    # Imported only now: Ray Serve reads its settings from the environment at import.
    from ray import serve as ray_serve
    from ray.exceptions import RayError

    from cluster import launch
    from cluster.app import device_here
    from cluster.room import NoRoom, require_room

    wait = True
    ours = own is not None  # else a start that fails leaves what was there before it
    try:
        ours = ours or not launch.is_deployed()
        console.print(
            f"windrose: starting {config.model_name} on {config.attention_actors} attention and "
            f"{config.expert_actors} expert actors"
        )
        if own is not None:
            device = _ask(own, partial(device_here, config))
            bundles = deployment_bundles(config, device, config.first_replicas)
            _ask(own, partial(require_room, bundles))
        device = _ask(own, partial(launch.deploy, config))
        deployed_s = time.time()
        steps = launch.watch_start(config, device)
        looks = iter(lambda: _ask(own, partial(next, steps, None)), None)
        started = show_start(looks, config, console)
        print(_where_time_went({**ends_s, "serve": deployed_s}, started))
        ours = True
        _announce(config, launch.local_url(config), example)
        while True:
            time.sleep(_LOOK_EVERY_S)
            if own is not None:
                own.require()
    except RayLost as error:
        console.print(f"windrose: {error}; nothing can be served without it", highlight=False)
        return 1
    except (ValueError, TimeoutError, RayError, launch.DeployError, NoRoom) as error:
        wait = not isinstance(error, NoRoom)
        console.print(f"windrose: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    except _Stop:
        if ours:
            console.print("windrose: finishing what was accepted; once more to stop at once")
            _drain(config, console, own)
    finally:
        signals.ignore()
        if own is None:
            if ours:
                launch.undeploy(wait=wait)
        else:
            hide_ray_lines()
            with suppress(RayLost):
                own.ask(ray_serve.shutdown)
    return 0


def _ask(own: LocalRay | None, call: Callable[[], T]) -> T:
    """What the start asks of Ray: of our own it is waited for only while that lives."""
    return call() if own is None else own.ask(call, let_go_s=_LET_GO_S)


def _drain(config: WindroseConfig, console: Console, own: LocalRay | None) -> None:
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    from cluster import launch

    def drain() -> int:
        return launch.drain(config.shutdown_timeout_s)

    try:
        # Where a signal goes to all processes at once, as systemd's do, Ray ends meanwhile.
        unfinished = drain() if own is None else own.ask(drain)
        if unfinished:
            console.print(f"windrose: {unfinished} requests did not finish in time")
    except _Stop:
        console.print("windrose: stopping at once")
    except (RayError, RayServeException, RayLost, TimeoutError) as error:
        console.print(f"windrose: could not drain: {error}", markup=False, highlight=False)


def _check(config: WindroseConfig) -> tuple[WindroseConfig, ModelConfig, bool]:
    """Refuse what cannot be served before anything is started.

    Returns the settings, a model on the hub bound to its commit; the checkpoint's config; and
    whether it has a chat format.
    """
    from actors.http.api_keys import read_keys
    from actors.http.trace_endpoint import trace_endpoint
    from actors.hub import find_model
    from actors.model_plan import check_checkpoint, model_directory
    from model.chat_template import NoFormat, chat_format
    from model.tokenizer import Tokenizer

    read_keys(config, os.environ)
    trace_endpoint(config, os.environ)
    hub = find_model(config, os.environ)
    if hub is not None:
        config = config.model_copy(update={"revision": hub.commit})
    model, directory = check_checkpoint(config, hub), model_directory(config, hub)
    chat = chat_format(Tokenizer.from_dir(directory), directory, config.chat_template)
    return config, model, not isinstance(chat, NoFormat)


def _why_not_bound(config: WindroseConfig) -> str:
    """Why nothing can listen where it is to; nothing if it can."""
    where = f"{config.host}:{config.port}"
    faults: list[OSError] = []
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
    except OSError as error:
        found = []
        faults.append(error)
    for family, *_, address in found:
        try:
            socket.create_server(address[:2], family=family).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"{where} is in use; choose another --port"
            faults.append(error)
    if len(faults) <= len(found) - 1:  # an address of several that this machine does not have
        return ""
    return f"{where} cannot be listened on: {faults[0].strerror}; choose another --host"


def _where_time_went(ends_s: Mapping[str, float], started: Starting) -> str:
    from cluster.start_phases import actor_ends, own_start_s, phases, phases_line

    ranks = [actor.start for actor in started.actors if actor.identity.rank >= 0]
    later_s = {"node": started.placed_s, **actor_ends(ranks), "health": started.healthy_s}
    return phases_line(phases(own_start_s(), {**ends_s, **later_s}))


def _example(task: Task, chats: bool) -> tuple[str, dict[str, object]]:
    """Path and body of a request that the model can answer."""
    if task != "generate":
        path = "/v1/embeddings" if task == "embed" else "/classify"
        return path, {"input": "What is Windrose?"}
    if chats:
        messages = [{"role": "user", "content": "What is Windrose?"}]
        return "/v1/chat/completions", {"max_tokens": 60, "messages": messages}
    return "/v1/completions", {"max_tokens": 60, "prompt": "A wind rose is"}


def _announce(config: WindroseConfig, url: str, example: tuple[str, dict[str, object]]) -> None:
    path, body = example[0], {"model": config.model_name, **example[1]}
    call = (
        f"curl -s {url}{path} -H 'Content-Type: application/json' "
        f"-d {shlex.quote(json.dumps(body))}"
    )
    print(f"Windrose serves {config.model_name} at {url}\nTry:  {call}", flush=True)


class _Signals:
    """SIGINT and SIGTERM, from Ray's start to the end of the process."""

    _CAUGHT = (signal.SIGINT, signal.SIGTERM)

    def install(self) -> None:
        """From now on a signal raises _Stop in the main thread."""
        for number in self._CAUGHT:
            signal.signal(number, self._raise)

    def ignore(self) -> None:
        """Let nothing interrupt the end."""
        for number in self._CAUGHT:
            signal.signal(number, signal.SIG_IGN)

    @staticmethod
    def _raise(_number: int, _frame: FrameType | None) -> None:
        raise _Stop
