"""Arguments that several benchmarks have, and the types of them."""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path
from typing import Any

from ops.bench.report import RESULTS_DIR
from ops.bench.workload import Workload

# What add_subparsers() returns; argparse has no public name for it.
Benches = Any


def bench_parser(benches: Benches, name: str, text: str) -> argparse.ArgumentParser:
    """A subcommand that measures, with the flags that all of those have."""
    parser: argparse.ArgumentParser = benches.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    parser.add_argument(
        "--save", action="store_true", help="write the JSON line to a dated file as well"
    )
    parser.add_argument(
        "--save-dir",
        type=Path,
        default=RESULTS_DIR,
        metavar="DIR",
        help="where --save writes (default: ops/results of this checkout)",
    )
    return parser


def add_workload(parser: argparse.ArgumentParser, streams: str, output: int = 128) -> None:
    """Bursts: how many streams, of which shape, how often."""
    parser.add_argument(
        "--streams",
        type=counts,
        default=counts(streams),
        metavar="N,N,...",
        help=f"requests at once, one burst size after another (default: {streams})",
    )
    add_shape(parser, output=output)
    add_rounds(parser)


def add_shape(
    parser: argparse.ArgumentParser, *, prompt: int = 128, output: int | None = 128
) -> None:
    """Tokens of a request; `output` None where that is fixed."""
    parser.add_argument(
        "--prompt-tokens", type=count, default=prompt, metavar="N", help="default: %(default)s"
    )
    if output is not None:
        parser.add_argument(
            "--output-tokens", type=count, default=output, metavar="N", help="default: %(default)s"
        )


def add_rounds(parser: argparse.ArgumentParser) -> None:
    """How often all is measured."""
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="default: %(default)s")


def workload_of(args: argparse.Namespace, vocab_size: int, seed: int) -> Workload:
    """What add_workload has read."""
    return Workload(
        streams=args.streams,
        prompt_tokens=args.prompt_tokens,
        output_tokens=args.output_tokens,
        rounds=args.rounds,
        vocab_size=vocab_size,
        seed=seed,
    )


def count(text: str) -> int:
    """A number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """Several of them."""
    return tuple(count(part) for part in text.split(","))


def rates(text: str) -> tuple[float, ...]:
    """Finite numbers above 0."""
    values = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{part!r} is not a number above 0")
        values.append(value)
    return tuple(values)


def above_0(text: str) -> float:
    """One of them."""
    [value] = rates(text)
    return value


def named(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name.strip() and equals and value.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name.strip(), value.strip()


def words_of(command: str, model: str) -> tuple[str, ...]:
    """A command's words with {model} filled in; other braces stay, as JSON needs them."""
    return tuple(word.replace("{model}", model) for word in shlex.split(command))
