"""The subcommands that start processes of their own: dispatch, startup, overload."""

from __future__ import annotations

import argparse
import secrets
import shlex
from typing import get_args

from configs.process_settings import CpuTransport
from ops.bench.arguments import (
    Benches,
    above_0,
    add_rounds,
    add_shape,
    bench_parser,
    count,
    counts,
    words_of,
)
from ops.bench.report import Report
from ops.bench.workload import Traffic


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

    _add_overload(
        bench_parser(
            benches, "overload", "find the load a server holds, then send ten times as much"
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
    parser.add_argument(
        "--cpu-transport",
        choices=get_args(CpuTransport),
        default="sockets",
        help="as of `windrose serve` (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the routing")


def _add_startup(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_startup)
    _add_command(parser)
    add_rounds(parser)


def _add_overload(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_overload)
    _add_command(parser)
    add_shape(parser)
    parser.add_argument(
        "--concurrency",
        type=counts,
        default=(8, 16, 32, 64, 128),
        metavar="N,N,...",
        help="workers on the way to the peak (default: 8,16,32,64,128)",
    )
    for flag, default, text in (
        ("--level-seconds", 10.0, "of load at each of them"),
        ("--seconds", 30.0, "of overload"),
        ("--factor", 10.0, "of the peak's requests a second"),
    ):
        parser.add_argument(
            flag, type=above_0, default=default, metavar="N", help=f"{text} (default: {default:g})"
        )
    parser.add_argument(
        "--vocab-size", type=count, default=2048, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of prompts and arrivals")


def _add_command(parser: argparse.ArgumentParser) -> None:
    """What is to be served, and by which server."""
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
            cpu_transport=args.cpu_transport,
        )
    )


def _startup(args: argparse.Namespace) -> Report:
    from ops.bench.startup import StartupBench, bench_startup

    return bench_startup(StartupBench(args.model, _command(args), args.rounds))


def _overload(args: argparse.Namespace) -> Report:
    from ops.bench.overload import OverloadBench, bench_overload

    seed = secrets.randbits(32) if args.seed is None else args.seed
    return bench_overload(
        OverloadBench(
            model=args.model,
            command=_command(args),
            traffic=Traffic(args.prompt_tokens, args.output_tokens, args.vocab_size, seed),
            levels=args.concurrency,
            level_s=args.level_seconds,
            factor=args.factor,
            overload_s=args.seconds,
        )
    )


def _command(args: argparse.Namespace) -> tuple[str, ...]:
    from ops.server_process import windrose_serve

    if args.command:
        return words_of(args.command, args.model)
    return tuple(windrose_serve(args.model, shlex.split(args.serve_args), "{port}"))
