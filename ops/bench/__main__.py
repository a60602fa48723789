"""`python -m ops.bench`: measure, print a table on stderr, and end in one JSON line on stdout."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from ops.bench.report import Report, emit
from ops.bench.workload import Workload
from ops.client import ServerError

EXIT_USAGE = 2
DEFAULT_URL = "http://127.0.0.1:8000"

_EXAMPLES = """\
examples:
  python -m ops.bench engine configs/demo
  python -m ops.bench engine MODEL_DIR --streams 1,8 --compare transformers
  python -m ops.bench http --url http://127.0.0.1:8000 --streams 1,8,32
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns 2 for arguments at fault, 1 for failures, a request's too."""
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], Report] = args.run
    try:
        report = run(args)
    except (ValueError, OSError, ServerError) as error:
        print(f"ops.bench {args.bench}: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ValueError) else 1
    emit(report)
    return 1 if any(result.get("errors") for result in report.results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    benches = parser.add_subparsers(title="benchmarks", dest="bench", required=True)

    engine = benches.add_parser(
        "engine", help="the engine alone, offline in this process, on CPU", allow_abbrev=False
    )
    engine.set_defaults(run=_engine)
    engine.add_argument("model_dir", metavar="MODEL_DIR", help="a Hugging Face checkpoint")
    _add_workload(engine, streams="1,8")
    engine.add_argument(
        "--threads",
        type=_count,
        default=os.cpu_count() or 1,
        metavar="N",
        help="default: all cores",
    )
    engine.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="default: the checkpoint's own",
    )
    engine.add_argument(
        "--compare", choices=("transformers",), help="take turns with transformers' generate()"
    )
    engine.add_argument(
        "--transformers-experts",
        choices=("eager", "grouped_mm", "batched_mm"),
        default="eager",
        help="how transformers runs its experts (default: %(default)s, its fastest on CPU)",
    )
    engine.add_argument("--seed", type=int, default=0, metavar="N", help="of the prompts")

    http = benches.add_parser(
        "http", help="load on a running server, streamed completions", allow_abbrev=False
    )
    http.set_defaults(run=_http)
    http.add_argument("--url", default=DEFAULT_URL, help="of the server (default: %(default)s)")
    http.add_argument("--model", metavar="NAME", help="default: the one the server has")
    _add_workload(http, streams="1,8,32")
    http.add_argument(
        "--vocab-size",
        type=_count,
        default=2048,
        metavar="N",
        help="prompt ids are drawn below it; at most the model's (default: %(default)s)",
    )
    http.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of the prompts; default: a new one, so that no cache knows them",
    )
    return parser


def _add_workload(parser: argparse.ArgumentParser, streams: str) -> None:
    parser.add_argument(
        "--streams",
        type=_counts,
        default=_counts(streams),
        metavar="N,N,...",
        help=f"requests at once, one burst size after another (default: {streams})",
    )
    parser.add_argument("--prompt-tokens", type=_count, default=128, metavar="N")
    parser.add_argument("--output-tokens", type=_count, default=128, metavar="N")
    parser.add_argument("--rounds", type=_count, default=3, metavar="N")


def _engine(args: argparse.Namespace) -> Report:
    from model.config import ModelConfig
    from ops.bench.engine import EngineBench, bench_engine

    if args.compare and find_spec(args.compare) is None:
        raise ValueError(f"--compare {args.compare}: that package is not installed")
    vocab_size = ModelConfig.from_dir(args.model_dir).vocab_size
    return bench_engine(
        EngineBench(
            model_dir=args.model_dir,
            workload=_workload(args, vocab_size, args.seed),
            threads=args.threads,
            dtype=args.dtype,
            transformers_experts=args.transformers_experts if args.compare else None,
        )
    )


def _http(args: argparse.Namespace) -> Report:
    from ops.bench.http import HttpBench, bench_http

    seed = secrets.randbits(32) if args.seed is None else args.seed
    return bench_http(HttpBench(args.url, args.model, _workload(args, args.vocab_size, seed)))


def _workload(args: argparse.Namespace, vocab_size: int, seed: int) -> Workload:
    return Workload(
        streams=args.streams,
        prompt_tokens=args.prompt_tokens,
        output_tokens=args.output_tokens,
        rounds=args.rounds,
        vocab_size=vocab_size,
        seed=seed,
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
