"""`windrose compress` in a terminal: a progress bar, then the report."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ops.compress.compression import compress
from ops.compress.report import as_json, print_report
from ops.compress.settings import CompressSettings


class _Bar:
    """A bar for each phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def phase(self, name: str, steps: int) -> None:
        """Add its bar."""
        self._task = self._progress.add_task(name, total=steps)

    def advance(self) -> None:
        """Move the last one."""
        self._progress.advance(self._task)


def run_compress(settings: CompressSettings, *, json_report: bool) -> int:
    """Compress and report on stdout; returns the exit status.

    Raises:
        ValueError: SRC or a setting is at fault.
        OSError: DST is there already, or a file cannot be written.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        report = compress(settings, _Bar(progress))
    if json_report:
        print(as_json(report))
    else:
        print_report(report, Console(width=None))
    return 0
