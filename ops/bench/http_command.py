"""The subcommands that load a running server: http, serve, interference."""

from __future__ import annotations

import argparse
import os
import secrets

from ops.bench.arguments import (
    Benches,
    above_0,
    add_shape,
    add_workload,
    bench_parser,
    count,
    counts,
    rates,
    workload_of,
)
from ops.bench.report import Report
from ops.bench.workload import Traffic, Workload
from ops.server_url import add_api_key, api_key_of

DEFAULT_URL = "http://127.0.0.1:8000"
_ROUNDS = 3
_REQUESTS = {"concurrency": 8, "rate": 64}


def add(benches: Benches) -> None:
    """Declare them."""
    http = bench_parser(benches, "http", "short for serve --burst, with --streams")
    http.set_defaults(run=_http)
    add_workload(http, streams="1,8,32")
    serve = bench_parser(benches, "serve", "load on a running server, streamed completions")
    serve.set_defaults(run=_serve)
    load = serve.add_mutually_exclusive_group(required=True)
    load.add_argument(
        "--concurrency",
        type=counts,
        metavar="N,N,...",
        help="so many workers, each sending its next request when the last has ended",
    )
    load.add_argument(
        "--rate",
        type=rates,
        metavar="R,R,...",
        help="so many requests per second at random times (Poisson), whatever is unanswered",
    )
    load.add_argument("--burst", type=counts, metavar="N,N,...", help="so many at one moment")
    add_shape(serve)
    serve.add_argument(
        "--requests",
        type=count,
        metavar="N",
        help="of each worker (default: 8), or with --rate in all (default: 64)",
    )
    serve.add_argument(
        "--rounds", type=count, metavar="N", help=f"of each burst (default: {_ROUNDS})"
    )
    beside = bench_parser(
        benches, "interference", "the gaps of streams calm, and while a long prompt is read"
    )
    beside.set_defaults(run=_interference)
    add_workload(beside, streams="8", output=800)
    beside.add_argument(
        "--long-prompt-tokens", type=count, default=4096, metavar="N", help="default: %(default)s"
    )
    beside.add_argument(
        "--calm-seconds",
        type=above_0,
        default=15.0,
        metavar="S",
        help="from the streams' start to the long prompt; as long as that takes to be read, "
        "so that both parts have their share of what disturbs now and then (default: %(default)g)",
    )
    for parser in (http, serve, beside):
        _add_server(parser)


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=DEFAULT_URL, help="of the server (default: %(default)s)")
    add_api_key(parser)
    parser.add_argument("--model", metavar="NAME", help="default: the one the server has")
    parser.add_argument(
        "--vocab-size",
        type=count,
        default=2048,
        metavar="N",
        help="prompt ids are drawn below it; at most the model's (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of prompts and arrivals; default: a new one, so that no cache knows the prompts",
    )


def _http(args: argparse.Namespace) -> Report:
    from ops.bench.http import HttpBench, bench_http

    workload = workload_of(args, args.vocab_size, _seed(args))
    return bench_http(HttpBench(args.bench, args.url, args.model, workload, _key(args)))


def _interference(args: argparse.Namespace) -> Report:
    from ops.bench.interference import InterferenceBench, bench_interference

    return bench_interference(
        InterferenceBench(
            url=args.url,
            model=args.model,
            workload=workload_of(args, args.vocab_size, _seed(args)),
            long_prompt_tokens=args.long_prompt_tokens,
            calm_s=args.calm_seconds,
            api_key=_key(args),
        )
    )


def _serve(args: argparse.Namespace) -> Report:
    from ops.bench.http import HttpBench, bench_http
    from ops.bench.http_load import LoadBench, bench_load

    traffic = Traffic(args.prompt_tokens, args.output_tokens, args.vocab_size, _seed(args))
    if args.burst:
        if args.requests is not None:
            raise ValueError("--requests: a burst has as many as it has streams; see --rounds")
        workload = Workload(
            streams=args.burst,
            prompt_tokens=traffic.prompt_tokens,
            output_tokens=traffic.output_tokens,
            rounds=args.rounds or _ROUNDS,
            vocab_size=traffic.vocab_size,
            seed=traffic.seed,
        )
        return bench_http(HttpBench(args.bench, args.url, args.model, workload, _key(args)))
    if args.rounds is not None:
        raise ValueError("--rounds: only bursts have rounds; see --requests")
    held = "concurrency" if args.concurrency else "rate"
    return bench_load(
        LoadBench(
            url=args.url,
            model=args.model,
            traffic=traffic,
            held="concurrency" if args.concurrency else "rate",
            levels=args.concurrency or args.rate,
            requests=args.requests or _REQUESTS[held],
            api_key=_key(args),
        )
    )


def _key(args: argparse.Namespace) -> str | None:
    return api_key_of(args.api_key, os.environ)


def _seed(args: argparse.Namespace) -> int:
    return secrets.randbits(32) if args.seed is None else int(args.seed)
