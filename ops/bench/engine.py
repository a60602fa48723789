"""The offline benchmark: the engine alone, if wished in turns with transformers' generate()."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from actors.model_plan import ModelPlan, plan_model
from configs.schema import Dtype, WindroseConfig
from ops.bench.burst import Burst
from ops.bench.floor import BANDWIDTH_METHOD, ReadBandwidth, decode_step_bytes
from ops.bench.own_engine import Generated, OwnEngine, Peer
from ops.bench.report import Report, over_rounds, rounded, shown, table
from ops.bench.workload import WARM_UP_ROUND, Workload

_FIGURES = ("output_tok_s", "decode_tok_s", "ttft_ms", "ttft_last_ms")


@dataclass(frozen=True, slots=True)
class EngineBench:
    """One run: what to load, what to ask of it, and whom to hold it against."""

    model_dir: str
    workload: Workload
    threads: int
    dtype: Dtype
    transformers_experts: str | None  # how transformers is to run its experts; None: not at all


def bench_engine(bench: EngineBench) -> Report:
    """Measure every number of streams in turn; progress goes to stderr.

    Peers take turns round by round, and who begins alternates, so that a machine that is slow
    for a while is slow for both.

    Raises:
        ValueError: the checkpoint cannot be served, or cannot hold such prompts and outputs.
    """
    torch.set_num_threads(bench.threads)
    plan = _plan(bench)
    engine = OwnEngine(plan)
    peers: list[Peer] = [engine]
    config = {
        "model": Path(bench.model_dir).resolve().name,
        "topology": [1, 0],
        "dtype": plan.dtype,
        "threads": bench.threads,
        **asdict(bench.workload),
        "max_num_batched_tokens": plan.limits.max_num_batched_tokens,
        "read_bandwidth": BANDWIDTH_METHOD,
    }
    if bench.transformers_experts is not None:
        # Not at the top: transformers is slow to import, and installed for development only.
        from ops.bench.transformers_peer import TransformersPeer

        peers.append(
            TransformersPeer(bench.model_dir, plan.torch_dtype, bench.transformers_experts)
        )
        config["transformers_experts"] = bench.transformers_experts
    bandwidth = ReadBandwidth()
    results = [
        _measure(peers, streams, bench.workload, plan, bandwidth)
        for streams in bench.workload.streams
    ]
    config["preemptions"] = engine.num_preemptions
    return Report("engine", config, results, _table(peers, results))


def _plan(bench: EngineBench) -> ModelPlan:
    """As a server would run it, but with room for every stream at once."""
    workload = bench.workload
    usual_seqs = int(WindroseConfig.model_fields["max_num_seqs"].default)
    return plan_model(
        WindroseConfig(
            model=bench.model_dir,
            dtype=bench.dtype,
            max_model_len=workload.prompt_tokens + workload.output_tokens,
            max_num_seqs=max(usual_seqs, *workload.streams),
            threads_per_actor=bench.threads,
        ),
        "cpu",
    )


def _measure(
    peers: list[Peer], streams: int, workload: Workload, plan: ModelPlan, bandwidth: ReadBandwidth
) -> dict[str, Any]:
    for peer in peers:
        peer.generate(workload.prompts(streams, WARM_UP_ROUND), workload.warm_up_tokens)
    made: dict[str, list[Generated]] = {peer.name: [] for peer in peers}
    read_bytes_s = []
    for index in range(workload.rounds):
        prompts = workload.prompts(streams, index)
        read_bytes_s.append(bandwidth.measure())
        for peer in peers if index % 2 == 0 else reversed(peers):
            generated = peer.generate(prompts, workload.output_tokens)
            made[peer.name].append(generated)
            print(
                f"streams {streams}, round {index + 1} of {workload.rounds}, {peer.name}: "
                f"{generated.burst.output_tok_s:.4g} tokens/s",
                file=sys.stderr,
                flush=True,
            )
    step_bytes = decode_step_bytes(plan.model, streams, plan.torch_dtype)
    steps_at_floor_s = median(read_bytes_s) / step_bytes
    result: dict[str, Any] = {
        "streams": streams,
        "read_gb_s": over_rounds([value / 1e9 for value in read_bytes_s]),
        "decode_step_bytes": step_bytes,
    }
    for name, rounds in made.items():
        result[name] = _figures([generated.burst for generated in rounds])
        decode = result[name]["decode_tok_s"]
        result[name]["floor_fraction"] = (
            None if decode is None else rounded(decode["median"] / streams / steps_at_floor_s)
        )
    if len(peers) > 1:
        own, other = (peer.name for peer in peers)
        result["ratio"] = _ratios(result[own], result[other])
        result["same_tokens"] = _same_tokens(made[own], made[other])
    return result


def _figures(bursts: list[Burst]) -> dict[str, Any]:
    """Of one peer: ttft_ms is of the median stream, ttft_last_ms of the last one to begin."""
    return {
        "output_tokens": [burst.num_tokens for burst in bursts],
        "output_tok_s": over_rounds([burst.output_tok_s for burst in bursts]),
        "decode_tok_s": over_rounds([burst.decode_tok_s for burst in bursts]),
        "ttft_ms": over_rounds([median(burst.first_token_s()) * 1e3 for burst in bursts]),
        "ttft_last_ms": over_rounds([max(burst.first_token_s()) * 1e3 for burst in bursts]),
    }


def _ratios(own: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Own median over the other's, for every figure that both have."""
    return {
        key: rounded(own[key]["median"] / other[key]["median"])
        for key in _FIGURES
        if own[key] is not None and other[key] is not None
    }


def _same_tokens(own: list[Generated], other: list[Generated]) -> float:
    """Mean share of a stream's tokens before the first that differs: bf16 may break near ties."""
    shares = []
    for one, two in zip(own, other, strict=True):
        for a, b in zip(one.token_ids, two.token_ids, strict=True):
            differs = [x != y for x, y in zip(a, b, strict=True)]
            shares.append((differs + [True]).index(True) / len(a))
    return rounded(fmean(shares))


def _table(peers: list[Peer], results: list[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        streams = str(result["streams"])
        for peer in peers:
            figures = result[peer.name]
            cells = [shown(figures[key]) for key in (*_FIGURES, "floor_fraction")]
            rows.append([streams, peer.name, *cells])
        if "ratio" in result:
            cells = [shown(result["ratio"].get(key)) for key in _FIGURES]
            rows.append([streams, "ratio", *cells, ""])
    reads = ", ".join(shown(result["read_gb_s"]) for result in results)
    return "\n".join(
        (
            table(
                ["streams", "peer", "output tok/s", "decode tok/s", "TTFT ms", "last TTFT ms",
                 "of floor"],
                rows,
            ),
            f"median (min-max) over rounds; memory read at {reads} GB/s",
        )
    )  # fmt: skip
