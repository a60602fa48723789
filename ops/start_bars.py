"""A start of `windrose serve` as people see it: bars of the actors that read weights, and news."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from configs.schema import WindroseConfig

if TYPE_CHECKING:  # it brings Ray, which takes seconds to import
    from cluster.launch import Starting


def show_start(looks: Iterable[Starting], config: WindroseConfig, console: Console) -> Starting:
    """Show every look at the start, until the server is healthy; returns the last of them.

    Where there is no terminal there are no bars, only what is new.
    """
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    rounding = "" if config.quantization == "none" else f", to {config.quantization}"
    tasks: dict[tuple[str, int], TaskID] = {}
    with bars:
        for starting in looks:
            if starting.news is not None:
                console.print(
                    f"windrose: {starting.news}", markup=False, highlight=False, soft_wrap=True
                )
            for actor in starting.actors:
                key = (actor.identity.pipeline, actor.identity.rank)
                if key not in tasks:
                    name = f"{actor.identity.role} {actor.identity.rank}{rounding}"
                    tasks[key] = bars.add_task(name, total=None)
                bars.update(
                    tasks[key],
                    completed=actor.read_bytes,
                    total=actor.weights_on_disk_bytes or None,
                )
    return starting
