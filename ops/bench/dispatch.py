"""Dispatch and combine of one layer between real processes, beside the bare messages.

Shape suffixes: T rows, D hidden.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
import torch

from actors.ranks.rendezvous import host_store
from model.exact_dispatch import ExactDispatcher
from model.exchange import Exchange
from ops.bench.dispatch_ranks import (
    EXPERTS,
    HOST,
    JOIN_TIMEOUT_S,
    DispatchPlan,
    RawExchange,
    Way,
    serve_expert_rank,
)
from ops.bench.report import Report, rounded, shown, table

_END_TIMEOUT_S = 10.0


def bench_dispatch(plan: DispatchPlan) -> Report:
    """Start the expert processes, then measure every number of rows; progress goes to stderr.

    Raises:
        ChildProcessError: an expert process ended.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _attention_rank(plan) as exchanges:
            raw: dict[Way, RawExchange] = {
                way: RawExchange(plan, exchanges[way]) for way in ("raw", "gloo")
            }
            times_s = _run(plan, exchanges["dispatch"], raw)
            results = [_result(plan, raw["raw"], rows, times_s) for rows in plan.rows]
    except RuntimeError as error:  # of the rendezvous, or PeerLost
        raise ChildProcessError(f"an expert process did not come or is gone: {error}") from error
    finally:
        torch.set_num_threads(threads)
    config = {"topology": [1, plan.expert_actors], "experts": EXPERTS, **asdict(plan)}
    return Report("dispatch", config, results, _table(results))


@contextmanager
def _attention_rank(plan: DispatchPlan) -> Iterator[dict[Way, Exchange]]:
    """This process as the attention rank of groups with new expert processes."""
    store = host_store(HOST, JOIN_TIMEOUT_S)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=serve_expert_rank, args=(plan, store.port, rank), daemon=True)
        for rank in plan.ranks
    ]
    try:
        for process in processes:
            process.start()
        yield plan.meet(store.port, 0)
        for process in processes:
            process.join(_END_TIMEOUT_S)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


@torch.inference_mode()
def _run(
    plan: DispatchPlan, exchange: Exchange, raw: Mapping[Way, RawExchange]
) -> dict[tuple[int, Way], list[float]]:
    """Seconds of every layer that was measured, by (rows, way)."""
    dispatcher = ExactDispatcher(plan.shape)
    dispatcher.attach(exchange, plan.placement)
    counts = {rows: plan.rows_for(rows) for rows in plan.rows}
    times_s: dict[tuple[int, Way], list[float]] = {}
    for rows, index, way in plan.turns():
        if way == "dispatch":
            spent_s = _dispatch_turn(plan, exchange, dispatcher, rows, counts[rows])
        else:
            spent_s = _raw_turn(plan, raw[way], counts[rows])
        if index >= 0:
            times_s.setdefault((rows, way), []).extend(spent_s)
            print(
                f"rows {rows}, round {index + 1} of {plan.rounds}, {way}: "
                f"{shown(float(np.median(spent_s)) * 1e6)} us",
                file=sys.stderr,
                flush=True,
            )
    return times_s


def _dispatch_turn(
    plan: DispatchPlan,
    exchange: Exchange,
    dispatcher: ExactDispatcher,
    rows: int,
    counts: list[dict[int, int]],
) -> list[float]:
    """Each layer waits for the one before, as in a model. The step's header is not timed."""
    x_TD = torch.ones(rows, plan.hidden, dtype=plan.shape.dtype)
    routings = [plan.routing(rows, layer) for layer in range(plan.layers)]
    spent_s = []
    for _ in range(plan.iterations):
        exchange.open_step(rows, 1)
        for layer, (ids_TK, weights_TK) in enumerate(routings):
            began_s = perf_counter()
            y_TD = dispatcher.combine(dispatcher.dispatch(layer, x_TD, ids_TK, weights_TK))
            spent_s.append(perf_counter() - began_s)
    # Each rank returned its rows of ones: what was timed did carry them.
    assert int(y_TD[:, -1].float().sum()) == sum(counts[-1].values())
    return spent_s


def _raw_turn(plan: DispatchPlan, raw: RawExchange, counts: list[dict[int, int]]) -> list[float]:
    spent_s = []
    for _ in range(plan.iterations):
        for layer_counts in counts:
            began_s = perf_counter()
            raw.layer(layer_counts)
            spent_s.append(perf_counter() - began_s)
    return spent_s


def _result(
    plan: DispatchPlan,
    raw: RawExchange,
    rows: int,
    times_s: dict[tuple[int, Way], list[float]],
) -> dict[str, Any]:
    counts = plan.rows_for(rows)
    layer_us, raw_us, gloo_us = (
        _percentiles_us(times_s[rows, way]) for way in ("dispatch", "raw", "gloo")
    )
    return {
        "rows": rows,
        "layers_timed": len(times_s[rows, "dispatch"]),
        "sent_bytes": round(sum(map(raw.sent_bytes, counts)) / plan.layers),
        "returned_bytes": round(sum(map(raw.returned_bytes, counts)) / plan.layers),
        "layer_us": layer_us,
        "raw_us": raw_us,
        "raw_gloo_us": gloo_us,
        "ratio": rounded(layer_us["p50"] / raw_us["p50"]),
        "ratio_to_gloo": rounded(layer_us["p50"] / gloo_us["p50"]),
    }


def _percentiles_us(values_s: list[float]) -> dict[str, float]:
    return {
        name: rounded(float(np.percentile(values_s, percent)) * 1e6)
        for name, percent in (("p50", 50), ("p99", 99))
    }


def _table(results: list[dict[str, Any]]) -> str:
    rows = [
        [
            str(result["rows"]),
            str(result["sent_bytes"]),
            str(result["returned_bytes"]),
            *(
                shown(result[key][rank])
                for key in ("layer_us", "raw_us", "raw_gloo_us")
                for rank in ("p50", "p99")
            ),
            shown(result["ratio"]),
            shown(result["ratio_to_gloo"]),
        ]
        for result in results
    ]
    header = [
        "rows",
        "bytes out",
        "bytes back",
        "layer us p50",
        "p99",
        "raw us p50",
        "p99",
        "gloo us p50",
        "p99",
        "ratio",
        "to gloo",
    ]
    return f"{table(header, rows)}\nof one layer; bytes over all expert ranks; ratios of p50"
