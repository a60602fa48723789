"""`windrose convert`: Mistral's own files to Hugging Face's layout, with a bar for each half."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


def run_convert(source: Path, target: Path, most_shard_bytes: int) -> int:
    """Convert and say what was done.

    Raises:
        ValueError, OSError: as `model.conversion` has it.
    """
    from model.conversion import convert, plan_conversion

    conversion = plan_conversion(source, target, most_shard_bytes)
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description:8}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bars:
        written = bars.add_task("written", total=conversion.total_bytes)
        verified = bars.add_task("verified", total=conversion.total_bytes)
        try:
            kept = convert(
                conversion,
                lambda count: bars.advance(written, count),
                lambda count: bars.advance(verified, count),
            )
        except KeyboardInterrupt:
            console.print("windrose convert: stopped; the same command goes on from here")
            raise
    num_tensors = sum(len(file.tensors) for file in conversion.files)
    print(
        f"windrose convert: {conversion.target}: {num_tensors} tensors, "
        f"{conversion.total_bytes / 1e9:.2f} GB in {len(conversion.files)} shards"
        + (f", {kept} of them written before" if kept else "")
    )
    if not (conversion.target / "tokenizer.model").exists():
        print(f"windrose convert: {source} has no tokenizer.model; serving needs one")
    return 0
