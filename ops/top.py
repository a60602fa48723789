"""`windrose top` and `windrose experts --watch`: a running server, looked at again and again."""

from __future__ import annotations

import time

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ops.client import connect
from ops.experts import ExpertsBody, expert_lines, expert_table
from ops.snapshot import Interval, take
from ops.wind_rose import wind_rose

_PHASES = ("wait", "compute", "communication")
_WATCH_S = 1.0


def watch_server(
    url: str, api_key: str | None, *, layer: int | None, interval_s: float, once: bool
) -> int:
    """Show requests, actors and experts until interrupted; returns the exit status.

    With `once`, print what one interval brought.

    Raises:
        ServerError: the server does not answer, or not as Windrose.
        ValueError: the model has no such layer.
    """
    console = Console(markup=False, highlight=False)
    with connect(url, api_key) as client:
        before = take(client)
        _recent(Interval(before, before), layer)  # refuses a wrong layer at once
        if once:
            time.sleep(interval_s)
            console.print(picture(Interval(before, take(client)), layer, _is_ascii(console)))
            return 0
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                time.sleep(interval_s)
                now = take(client)
                live.update(picture(Interval(before, now), layer, _is_ascii(console)), refresh=True)
                before = now


def watch_experts(url: str, api_key: str | None, *, layer: int | None) -> int:
    """Show the experts' load of the last second until interrupted; raises as watch_server."""
    console = Console(markup=False, highlight=False)
    with connect(url, api_key) as client:
        before = take(client)
        _recent(Interval(before, before), layer)
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                time.sleep(_WATCH_S)
                now = take(client)
                live.update(
                    _experts(Interval(before, now), layer, _is_ascii(console)), refresh=True
                )
                before = now


def _is_ascii(console: Console) -> bool:
    return console.options.ascii_only


def picture(interval: Interval, layer: int | None, ascii_only: bool) -> RenderableType:
    """All of `windrose top`."""
    return Group(
        _requests(interval),
        Columns([_rose(interval, layer, ascii_only), _experts(interval, layer, ascii_only)]),
        _actors(interval),
    )


def _requests(interval: Interval) -> RenderableType:
    now = interval.now
    usage = [v for (name, _), v in now.samples.items() if name == "windrose_kv_cache_usage_perc"]
    figures = [
        f"running {now.total('windrose_num_requests_running'):.0f}",
        f"waiting {now.total('windrose_num_requests_waiting'):.0f}",
        f"KV cache {max(usage, default=0.0):.0%}",
        f"output {interval.rate('windrose_generation_tokens_total'):.0f} tokens/s",
        f"prompts {interval.rate('windrose_prompt_tokens_total'):.0f} tokens/s",
        f"first token {_ms(interval.mean('windrose_time_to_first_token_seconds'))}",
        f"between tokens {_ms(interval.mean('windrose_inter_token_latency_seconds'))}",
        f"finished {now.total('windrose_request_success_total'):.0f}",
        f"recoveries {now.total('windrose_recovery_seconds_count'):.0f}",
        f"placement version {now.experts.placement_version}",
    ]
    return Text(" | ".join(figures))


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"


def _recent(interval: Interval, layer: int | None) -> tuple[ExpertsBody, list[int]]:
    body = interval.now.experts.model_copy(update={"tokens": interval.tokens()})
    return body, [line.tokens for line in expert_lines(body, layer)]


def _rose(interval: Interval, layer: int | None, ascii_only: bool) -> RenderableType:
    _, loads = _recent(interval, layer)
    where = "all layers" if layer is None else f"layer {layer}"
    return Panel.fit("\n".join(wind_rose(loads, ascii_only=ascii_only)), title=where)


def _experts(interval: Interval, layer: int | None, ascii_only: bool) -> RenderableType:
    body, _ = _recent(interval, layer)
    return expert_table(body, layer, ascii_only=ascii_only)


def _actors(interval: Interval) -> Table:
    """Where each actor's time went in between, as shares of the interval."""
    table = Table(title="Actors")
    for heading in ("pipeline", "rank", "role", "phase", *_PHASES, "rows/s", "MB/s sent"):
        table.add_column(heading, justify="left" if heading in ("pipeline", "role") else "right")
    for one in interval.now.experts.actors:
        if one.rank is None:
            continue
        where = {"pipeline": one.pipeline, "rank": str(one.rank)}
        spent = [
            interval.rate("windrose_step_seconds_total", **where, role=one.role, phase=phase)
            for phase in _PHASES
        ]
        rows = interval.rate("windrose_engine_rows_total", **where)
        rows += interval.rate("windrose_expert_actor_rows_total", **where)
        sent = interval.rate("windrose_sent_bytes_total", **where)
        table.add_row(
            one.pipeline,
            str(one.rank),
            one.role,
            one.phase,
            *(f"{share:.0%}" for share in spent),
            f"{rows:,.0f}",
            f"{sent / 1e6:.2f}",
        )
    return table
