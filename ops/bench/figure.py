"""A saved result as a picture: ours and the peers' for each number of streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ops.bench.bar_chart import Bar, bar_chart

MEASURES = {
    "output_tok_s": "output tokens/s",
    "decode_tok_s": "decode tokens/s",
    "prefill_tok_s": "prefill tokens/s",
    "ttft_ms": "time to first token, ms",
    "itl_ms": "inter-token latency, ms",
}


def saved_line(path: str, run: int | None) -> dict[str, Any]:
    """One saved result of a file: its `run`-th from 1, or the last.

    Raises:
        ValueError: the file has none such.
        OSError: it cannot be read.
    """
    texts = Path(path).read_text(encoding="utf-8").splitlines()
    if not texts or (run is not None and run > len(texts)):
        raise ValueError(f"{path} holds {len(texts)} results, and no number {run or 1}")
    try:
        line: dict[str, Any] = json.loads(texts[-1 if run is None else run - 1])
        _ = line["results"], line["config"]["model"], line["hardware"]["cpu"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} holds no saved result: {error!r}") from error
    return line


def figure_svg(line: Mapping[str, Any], measure: str) -> str:
    """Draw one saved result; `measure` is a key of MEASURES.

    Raises:
        ValueError: it has no such figure.
    """
    groups = bars_of(line, measure)
    hardware = line["hardware"]
    machine = f"{hardware['gpu'] or hardware['cpu']}, {hardware['cores']} cores"
    return bar_chart(
        f"{MEASURES[measure]}, {line['config']['model']}",
        f"{machine}, {line['date'][:10]}; median, least and most of the rounds",
        groups,
    )


def bars_of(line: Mapping[str, Any], measure: str) -> dict[str, list[Bar]]:
    """The bars of each result that has the figure, by what is written below them.

    Raises:
        ValueError: none has it.
    """
    groups: dict[str, list[Bar]] = {}
    for result in line["results"]:
        servers: dict[str, Any] = result.get("contenders", result)
        figures = {
            name: value[measure]
            for name, value in servers.items()
            if name != "ratio" and isinstance(value, dict) and value.get(measure)
        }
        if figures:
            groups[_label(result)] = [
                Bar(name, figure["median"], figure["min"], figure["max"])
                for name, figure in figures.items()
            ]
    if not groups:
        raise ValueError(f"this result of {line['bench']} says no {measure} of any server")
    return groups


def _label(result: Mapping[str, Any]) -> str:
    if "streams" in result:
        return f"{result['streams']} stream{'s' if result['streams'] > 1 else ''}"
    return f"prompt of {result['prefill_tokens']}"
