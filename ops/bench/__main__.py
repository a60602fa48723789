"""`python -m ops.bench`: measure, print a table on stderr, and end in one JSON line on stdout."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from ops.bench import compare_command, http_command, offline_command, process_command
from ops.bench.arguments import Benches, count
from ops.bench.figure import MEASURES, figure_svg, saved_line
from ops.bench.report import Report, emit
from ops.client import ServerError
from ops.command_line import EXIT_INTERRUPTED, EXIT_USAGE

_EXAMPLES = """\
examples:
  python -m ops.bench engine MODEL_DIR --streams 1,8 --compare transformers
  python -m ops.bench decode MODEL_DIR --streams 1,8,32 --save
  python -m ops.bench prefill MODEL_DIR --prompt-tokens 1024
  python -m ops.bench serve --url http://127.0.0.1:8000 --concurrency 1,8,32
  python -m ops.bench serve --url http://127.0.0.1:8000 --rate 2,4 --requests 128
  python -m ops.bench interference --url http://127.0.0.1:8000 --streams 8 --long-prompt-tokens 4096
  python -m ops.bench dispatch --expert-actors 2 --rows 1,8,32,256
  python -m ops.bench startup configs/demo --serve-args "--expert-actors 2"
  python -m ops.bench overload configs/demo --serve-args "--expert-actors 2" --seconds 20
  python -m ops.bench compare MODEL_DIR --own-args "--dtype bfloat16" --save \\
      --peer "llama.cpp=llama-server -m model.gguf --port {port} -np 32 -c 40960" \\
      --peer "vllm=vllm serve {model} --port {port} --dtype bfloat16"
  python -m ops.bench figure ops/results/DATE-compare-MODEL-2-cores.json -o figure.svg
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns 2 for arguments at fault, 1 for failures, a request's too."""
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], Report | None] = args.run
    try:
        report = run(args)
        if report is not None:
            emit(report, args.save_dir if args.save else None)
    except (ValueError, OSError, ServerError) as error:
        print(f"ops.bench {args.bench}: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    failed = report is not None and any(result.get("errors") for result in report.results)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    benches = parser.add_subparsers(title="benchmarks", dest="bench", required=True)
    for command in (offline_command, http_command, process_command, compare_command):
        command.add(benches)
    _add_figure(benches)
    return parser


def _add_figure(benches: Benches) -> None:
    text = "draw a saved result of engine, decode, prefill or compare as SVG"
    parser: argparse.ArgumentParser = benches.add_parser("figure", help=text, allow_abbrev=False)
    parser.set_defaults(run=_figure)
    parser.add_argument("result", metavar="RESULT.json", help="a file of --save")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.svg")
    parser.add_argument(
        "--measure",
        choices=tuple(MEASURES),
        default="output_tok_s",
        help="what the bars show (default: %(default)s)",
    )
    parser.add_argument(
        "--run", type=count, dest="run_number", metavar="N", help="of the file (default: the last)"
    )


def _figure(args: argparse.Namespace) -> None:
    line = saved_line(args.result, args.run_number)
    args.output.write_text(figure_svg(line, args.measure), encoding="utf-8")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # SIGTERM ends it as Ctrl-C does: servers of our own must not stay.
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
