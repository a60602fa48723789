"""What `windrose compress` is asked to do, and its arguments. Imports nothing heavy."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import dataclass
from pathlib import Path

COMPRESS_EXAMPLES = """\
Every w1, w2 and w3 of the experts becomes two factors of lower rank, by singular value
decomposition; a matrix that its factors would not make smaller stays as it is. With --remove-params
or --ratio each gets the rank that its spectrum needs. What comes out is laid out as
yaya-sy/minixtral is: `windrose serve DST` serves it.

The same command takes an interrupted run up again where its writing stopped.

examples:
  windrose compress Mixtral-8x7B-Instruct-v0.1 minixtral --remove-params 10e9
  windrose compress configs/demo /tmp/small --ratio 0.2 --text some.txt
  windrose compress configs/demo /tmp/small --rank 64 --layers 1-3
"""
DEFAULT_STEP = 16
SHARD_BYTES = 5_000_000_000  # as transformers long had it


@dataclass(frozen=True, slots=True)
class CompressSettings:
    """One of `remove_params`, `ratio` and `rank` is given."""

    source: Path
    target: Path
    remove_params: int | None = None  # at least so many
    ratio: float | None = None  # at least this share of all parameters
    rank: int | None = None  # of every matrix
    layers: tuple[int, ...] | None = None  # None: all
    step: int = DEFAULT_STEP  # ranks are multiples of it, unless `rank` says otherwise
    text: Path | None = None
    device: str = "auto"
    shard_bytes: int = SHARD_BYTES  # the most in one file, but for a tensor that is larger


def add_compress_arguments(parser: ArgumentParser) -> None:
    """Add its flags."""
    parser.add_argument("source", type=Path, metavar="SRC", help="a Mixtral's checkpoint directory")
    parser.add_argument("target", type=Path, metavar="DST", help="a new directory")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--remove-params", type=_count, metavar="N", help="remove at least so many, such as 10e9"
    )
    goal.add_argument(
        "--ratio", type=_share, metavar="X", help="remove at least this share of all parameters"
    )
    goal.add_argument("--rank", type=_count, metavar="R", help="the same rank for every matrix")
    parser.add_argument(
        "--layers", type=_layers, metavar="L,M-N", help="these only, such as 4-31; default: all"
    )
    parser.add_argument(
        "--rank-step",
        type=_count,
        default=DEFAULT_STEP,
        metavar="N",
        help=f"ranks are multiples of it (default: {DEFAULT_STEP})",
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="measure perplexity on it, before and after"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where matrices are decomposed (default: a GPU if there is one)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def compress_settings(args: Namespace) -> CompressSettings:
    """The settings that the arguments ask for."""
    return CompressSettings(
        source=args.source,
        target=args.target,
        remove_params=args.remove_params,
        ratio=args.ratio,
        rank=args.rank,
        layers=args.layers,
        step=args.rank_step,
        text=args.text,
        device=args.device,
    )


def _count(text: str) -> int:
    try:
        value = float(text)  # 10e9 too
    except ValueError:
        value = 0.0
    if not 1 <= value < math.inf or value != int(value):
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(value)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def _layers(text: str) -> tuple[int, ...]:
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ArgumentTypeError(f"{text!r} is no list of layers such as 0,4-31")
        layers |= set(range(int(first), int(last or first) + 1))
    if not layers:
        raise ArgumentTypeError(f"{text!r} names no layer")
    return tuple(sorted(layers))
