"""What the offline benchmarks say of their runs, and the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from ops.bench.burst import Burst
from ops.bench.floor import Floor
from ops.bench.own_engine import Generated
from ops.bench.report import over_rounds, ratios, rounded, shown, table
from ops.bench.workload import Workload

Figure = Callable[[Burst, Workload], float | None]


def prefill_tok_s(burst: Burst, workload: Workload) -> float:
    """Prompt tokens per second until the last stream has its first output token."""
    return len(burst.streams) * workload.prompt_tokens / max(burst.first_token_s())


_FIGURES: dict[str, Figure] = {
    "output_tok_s": lambda burst, _: burst.output_tok_s,
    "decode_tok_s": lambda burst, _: burst.decode_tok_s,
    "prefill_tok_s": prefill_tok_s,
    "ttft_ms": lambda burst, _: median(burst.first_token_s()) * 1e3,  # of the median stream
    "ttft_last_ms": lambda burst, _: max(burst.first_token_s()) * 1e3,
}
_HEADINGS = {
    "output_tok_s": "output tok/s",
    "decode_tok_s": "decode tok/s",
    "prefill_tok_s": "prefill tok/s",
    "ttft_ms": "TTFT ms",
    "ttft_last_ms": "last TTFT ms",
}
_RATES = {"read_gb_s": "memory read at {} GB/s", "matmul_gflop_s": "matmul at {} GFLOP/s"}

# What each subcommand says of its runs.
FIGURES_OF = {
    "engine": ("output_tok_s", "decode_tok_s", "ttft_ms", "ttft_last_ms"),
    "decode": ("decode_tok_s",),
    "prefill": ("prefill_tok_s",),
}


def progress_of(burst: Burst, workload: Workload, figures: Sequence[str]) -> str:
    """The first figure of one round, for people who wait."""
    value = _FIGURES[figures[0]](burst, workload)
    return f"{shown(value)} {_HEADINGS[figures[0]]}"


def result_of(
    streams: int,
    made: Mapping[str, Sequence[Generated]],
    rates: Sequence[float],
    workload: Workload,
    figures: Sequence[str],
    floor: Floor,
) -> dict[str, Any]:
    """The result for one number of streams: rounds by peer, and the floor's rate in each round."""
    result: dict[str, Any] = {
        "streams": streams,
        floor.rate_key: over_rounds([rate / 1e9 for rate in rates]),
        floor.cost_key: floor.cost(streams),
    }
    cost_of_one = floor.cost(streams) / floor.tokens(streams)
    for name, rounds in made.items():
        values: dict[str, Any] = {"output_tokens": [one.burst.num_tokens for one in rounds]}
        for key in figures:
            values[key] = over_rounds([_FIGURES[key](one.burst, workload) for one in rounds])
        bounded = values[floor.figure]
        values["floor_fraction"] = (
            None if bounded is None else rounded(bounded["median"] * cost_of_one / median(rates))
        )
        result[name] = values
    if len(made) > 1:
        own, other = made
        result["ratio"] = ratios(result[own], result[other], figures)
        result["same_tokens"] = _same_tokens(made[own], made[other])
    return result


def _same_tokens(own: Sequence[Generated], other: Sequence[Generated]) -> float:
    """Mean share of a stream's tokens before the first that differs: bf16 may break near ties."""
    shares = []
    for one, two in zip(own, other, strict=True):
        for a, b in zip(one.token_ids, two.token_ids, strict=True):
            differs = [x != y for x, y in zip(a, b, strict=True)]
            shares.append((differs + [True]).index(True) / len(a))
    return rounded(fmean(shares))


def table_of(
    names: Sequence[str], figures: Sequence[str], floor: Floor, results: Sequence[Mapping[str, Any]]
) -> str:
    """A line for every number of streams and peer."""
    rows = []
    for result in results:
        streams = str(result["streams"])
        for name in names:
            cells = [shown(result[name][key]) for key in (*figures, "floor_fraction")]
            rows.append([streams, name, *cells])
        if "ratio" in result:
            cells = [shown(result["ratio"].get(key)) for key in figures]
            rows.append([streams, "ratio", *cells, ""])
    header = ["streams", "peer", *(_HEADINGS[key] for key in figures), "of floor"]
    rates = ", ".join(shown(result[floor.rate_key]) for result in results)
    note = _RATES[floor.rate_key].format(rates)
    return f"{table(header, rows)}\nmedian (min-max) over rounds; {note}"
