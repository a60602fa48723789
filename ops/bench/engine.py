"""The offline benchmarks: the engine alone, if wished in turns with transformers' generate()."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from actors.model_plan import ModelPlan, plan_model
from configs.model_settings import Dtype, Quantization
from configs.schema import WindroseConfig
from model.cpu_kernels.in_use import load_kernels
from ops.bench.engine_report import FIGURES_OF, progress_of, result_of, table_of
from ops.bench.floor import DecodeFloor, Floor, PrefillFloor
from ops.bench.own_engine import Generated, OwnEngine, Peer
from ops.bench.report import Report
from ops.bench.workload import WARM_UP_ROUND, Workload

Beside = Literal["unquantized", "paced"]


@dataclass(frozen=True, slots=True)
class EngineBench:
    """One run: what to load, what to ask of it, and whom to hold it against.

    `name` is the subcommand, a key of FIGURES_OF. `beside`: the same engine without its
    quantization, or reading prompts at the pace of a server, whose streams wait for no crowd.

    Raises:
        ValueError: a rate of decoding is asked for, and outputs of one token.
    """

    name: str
    model_dir: str
    workload: Workload
    threads: int
    dtype: Dtype
    transformers_experts: str | None  # how transformers is to run its experts; None: not at all
    quantization: Quantization = "none"
    beside: Beside | None = None

    def __post_init__(self) -> None:
        if self.name == "decode" and self.workload.output_tokens < 2:
            raise ValueError("--output-tokens 1: decoding begins with the second token")


def bench_engine(bench: EngineBench) -> Report:
    """Measure every number of streams in turn; progress goes to stderr.

    Peers take turns round by round, and who begins alternates, so that a machine that is slow
    for a while is slow for both.

    Raises:
        ValueError: the checkpoint cannot be served, or cannot hold such prompts and outputs.
    """
    torch.set_num_threads(bench.threads)  # the peer's too
    if (kernels := load_kernels()) is not None:
        kernels.num_threads = bench.threads
    plan = _plan(bench, bench.quantization)
    floor = _floor(bench, plan)
    engine = OwnEngine(plan)
    peers: list[Peer] = [engine]
    config = {
        "model": Path(bench.model_dir).resolve().name,
        "topology": [1, 0],
        "dtype": plan.dtype,
        "quantization": bench.quantization,
        "threads": bench.threads,
        **asdict(bench.workload),
        "max_num_batched_tokens": plan.limits.max_num_batched_tokens,
        floor.method[0]: floor.method[1],
    }
    if bench.transformers_experts is not None:
        # Not at the top: transformers is slow to import, and installed for development only.
        from ops.bench.transformers_peer import TransformersPeer

        peers.append(
            TransformersPeer(bench.model_dir, plan.torch_dtype, bench.transformers_experts)
        )
        config["transformers_experts"] = bench.transformers_experts
    if bench.beside == "unquantized":
        peers.append(OwnEngine(_plan(bench, "none"), bench.beside))
    elif bench.beside == "paced":
        peers.append(OwnEngine(_plan(bench, bench.quantization, paced=True), bench.beside))
    figures = FIGURES_OF[bench.name]
    results = [
        _measure(peers, streams, bench.workload, figures, floor)
        for streams in bench.workload.streams
    ]
    config["preemptions"] = engine.num_preemptions
    return Report(
        bench.name,
        config,
        results,
        table_of([peer.name for peer in peers], figures, floor, results),
    )


def _plan(bench: EngineBench, quantization: Quantization, *, paced: bool = False) -> ModelPlan:
    """As a server would run it, but with room for every stream at once, and whole steps."""
    workload, fields = bench.workload, WindroseConfig.model_fields
    usual_seqs = int(fields["max_num_seqs"].default)
    usual_stretch = float(fields["max_itl_stretch"].default)
    return plan_model(
        WindroseConfig(
            model=bench.model_dir,
            dtype=bench.dtype,
            quantization=quantization,
            max_model_len=workload.prompt_tokens + workload.output_tokens,
            max_num_seqs=max(usual_seqs, *workload.streams),
            threads_per_actor=bench.threads,
            max_itl_stretch=usual_stretch if paced else 0.0,  # nobody waits for a token
        ),
        "cpu",
    )


def _floor(bench: EngineBench, plan: ModelPlan) -> Floor:
    if bench.name == "prefill":
        return PrefillFloor(plan.model, plan.torch_dtype, bench.workload.prompt_tokens)
    return DecodeFloor(plan.model, plan.torch_dtype, plan.bits)


def _measure(
    peers: list[Peer], streams: int, workload: Workload, figures: tuple[str, ...], floor: Floor
) -> dict[str, Any]:
    for peer in peers:
        peer.generate(workload.prompts(streams, WARM_UP_ROUND), workload.warm_up_tokens)
    made: dict[str, list[Generated]] = {peer.name: [] for peer in peers}
    rates = []
    for index in range(workload.rounds):
        prompts = workload.prompts(streams, index)
        rates.append(floor.measure())
        for peer in peers if index % 2 == 0 else reversed(peers):
            generated = peer.generate(prompts, workload.output_tokens)
            made[peer.name].append(generated)
            print(
                f"streams {streams}, round {index + 1} of {workload.rounds}, {peer.name}: "
                f"{progress_of(generated.burst, workload, figures)}",
                file=sys.stderr,
                flush=True,
            )
    return result_of(streams, made, rates, workload, figures, floor)
