"""Arguments of the commands that look at checkpoints: `windrose convert` and `inspect`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

CONVERT_EXAMPLES = """\
SRC has params.json and consolidated.*; DST is to be a new directory. Every shard is read back and
compared before it gets its name, and the index comes last. What was stopped goes on where it was
when the same command is given again.

examples:
  windrose convert /models/mixtral-8x7b-raw /models/Mixtral-8x7B-v0.1
  windrose convert SRC DST --max-shard-size 2GB
"""
INSPECT_EXAMPLES = """\
Reads headers only. A topology (A, E) is A attention actors and E expert actors, each on a device of
its own; E = 0 keeps the experts in the attention actors. Sizes say what fits with one attention
actor; each further one takes as much and brings as much room for the KV cache.

examples:
  windrose inspect configs/demo
  windrose inspect /models/Mixtral-8x7B-v0.1 --memory-per-device 24GiB
  windrose inspect MODEL_DIR --memory-per-device 40GiB --memory-per-device 80GiB --json
"""
DEFAULT_SHARD_SIZE = "5GB"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[KMG]I?)B?", re.IGNORECASE)


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Add SRC, DST and --max-shard-size."""
    parser.add_argument("source", type=Path, metavar="SRC", help="directory to read")
    parser.add_argument("target", type=Path, metavar="DST", help="directory to write")
    parser.add_argument(
        "--max-shard-size",
        type=size_bytes,
        default=DEFAULT_SHARD_SIZE,
        metavar="SIZE",
        help=f"largest shard, as in 500MB or 2GiB (default: {DEFAULT_SHARD_SIZE})",
    )


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL_DIR, --memory-per-device and --json."""
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="a checkpoint directory")
    parser.add_argument(
        "--memory-per-device",
        type=size_bytes,
        action="append",
        metavar="SIZE",
        help="as in 24GiB; again for more (default: several sizes)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def size_bytes(text: str) -> int:
    """Bytes of a size with a unit: 5GB, 512MiB, 1000."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB or 512MiB")
    return size
