"""The subcommands that start processes of their own: dispatch, startup."""

from __future__ import annotations

import argparse
import shlex

from ops.bench.arguments import (
    Benches,
    add_rounds,
    bench_parser,
    count,
    counts,
    words_of,
)
from ops.bench.report import Report


def add(benches: Benches) -> None:
    """Declare them."""
    _add_dispatch(
        bench_parser(
            benches,
            "dispatch",
            "dispatch and combine of a layer between real processes, beside bare messages",
        )
    )
    _add_startup(
        bench_parser(
            benches, "startup", "start a server: time to its first token, memory, time to its end"
        )
    )


def _add_dispatch(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_dispatch)
    parser.add_argument(
        "--expert-actors", type=count, default=2, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--rows",
        type=counts,
        default=(1, 8, 32, 256),
        metavar="N,N,...",
        help="of a step (default: 1,8,32,256)",
    )
    for flag, default in (("--hidden", 1024), ("--top-k", 2), ("--layers", 8)):
        parser.add_argument(
            flag, type=count, default=default, metavar="N", help="default: %(default)s"
        )
    parser.add_argument(
        "--iterations",
        type=count,
        default=50,
        metavar="N",
        help="steps of a round (default: %(default)s)",
    )
    add_rounds(parser)
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of the rows (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the routing")


def _add_startup(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_startup)
    parser.add_argument("model", metavar="MODEL", help="what is to be served")
    server = parser.add_mutually_exclusive_group()
    server.add_argument(
        "--serve-args", default="", metavar="FLAGS", help="more flags of `windrose serve`, quoted"
    )
    server.add_argument(
        "--command",
        metavar="CMD",
        help="another server to start instead; {port} and {model} in it are filled in",
    )
    add_rounds(parser)


def _dispatch(args: argparse.Namespace) -> Report:
    from ops.bench.dispatch import bench_dispatch
    from ops.bench.dispatch_ranks import DispatchPlan

    return bench_dispatch(
        DispatchPlan(
            expert_actors=args.expert_actors,
            rows=args.rows,
            hidden=args.hidden,
            top_k=args.top_k,
            layers=args.layers,
            iterations=args.iterations,
            rounds=args.rounds,
            dtype=args.dtype,
            seed=args.seed,
        )
    )


def _startup(args: argparse.Namespace) -> Report:
    from ops.bench.startup import StartupBench, bench_startup
    from ops.server_process import windrose_serve

    command = (
        words_of(args.command, args.model)
        if args.command
        else tuple(windrose_serve(args.model, shlex.split(args.serve_args), "{port}"))
    )
    return bench_startup(StartupBench(args.model, command, args.rounds))
