"""The subcommands that run the engine in this process: engine, decode, prefill."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec

from ops.bench.arguments import (
    Benches,
    add_rounds,
    add_shape,
    add_workload,
    bench_parser,
    count,
    workload_of,
)
from ops.bench.report import Report


def add(benches: Benches) -> None:
    """Declare them."""
    engine = bench_parser(
        benches, "engine", "the engine alone, offline in this process, on CPU: all its figures"
    )
    add_workload(engine, streams="1,8")
    decode = bench_parser(
        benches, "decode", "of the same only decoding, beside what memory bandwidth allows"
    )
    add_workload(decode, streams="1,8")
    prefill = bench_parser(
        benches, "prefill", "of the same only one prompt, beside what matrix products allow"
    )
    add_shape(prefill, prompt=1024, output=None)
    add_rounds(prefill)
    prefill.set_defaults(streams=(1,), output_tokens=1)
    for parser in (engine, decode, prefill):
        parser.set_defaults(run=_run)
        _add_engine(parser)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="a Hugging Face checkpoint")
    parser.add_argument(
        "--threads",
        type=count,
        default=os.cpu_count() or 1,
        metavar="N",
        help="default: all cores",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="default: the checkpoint's own",
    )
    parser.add_argument(
        "--quantization",
        choices=("none", "int8", "int4"),
        default="none",
        help="as of `windrose serve`",
    )
    parser.add_argument(
        "--compare",
        choices=("transformers", "unquantized", "paced"),
        help="take turns with transformers' generate(), with the same engine unquantized, or with"
        " it at the pace of a server, which does not stop streams for a crowd of prompts",
    )
    parser.add_argument(
        "--transformers-experts",
        choices=("eager", "grouped_mm", "batched_mm"),
        default="eager",
        help="how transformers runs its experts (default: %(default)s, its fastest on CPU)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the prompts")


def _run(args: argparse.Namespace) -> Report:
    from model.config import ModelConfig
    from ops.bench.engine import EngineBench, bench_engine

    beside_transformers = args.compare == "transformers"
    if beside_transformers and find_spec(args.compare) is None:
        raise ValueError(f"--compare {args.compare}: that package is not installed")
    vocab_size = ModelConfig.from_dir(args.model_dir).vocab_size
    return bench_engine(
        EngineBench(
            name=args.bench,
            model_dir=args.model_dir,
            workload=workload_of(args, vocab_size, args.seed),
            threads=args.threads,
            dtype=args.dtype,
            transformers_experts=args.transformers_experts if beside_transformers else None,
            quantization=args.quantization,
            beside=None if beside_transformers else args.compare,
        )
    )
