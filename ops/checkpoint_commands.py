"""The commands that work on checkpoints, without a server: convert, inspect and compress."""

from __future__ import annotations

import argparse

from ops.command_line import AddCommand, failed
from ops.compress.settings import (
    COMPRESS_EXAMPLES,
    add_compress_arguments,
    compress_settings,
)
from ops.model_flags import (
    CONVERT_EXAMPLES,
    INSPECT_EXAMPLES,
    add_convert_arguments,
    add_inspect_arguments,
)


def add_checkpoint_commands(command: AddCommand) -> None:
    """Add them all to the parser of `windrose`."""
    add_convert_arguments(
        command(
            "convert",
            _convert,
            "turn Mistral's own weight files into Hugging Face's",
            CONVERT_EXAMPLES,
        )
    )
    add_inspect_arguments(
        command(
            "inspect",
            _inspect,
            "show what a checkpoint is, what each role holds, and which topologies fit",
            INSPECT_EXAMPLES,
        )
    )
    add_compress_arguments(
        command(
            "compress",
            _compress,
            "make a smaller checkpoint of a Mixtral: its experts as low-rank factors",
            COMPRESS_EXAMPLES,
        )
    )


def _convert(args: argparse.Namespace) -> int:
    from ops.convert import run_convert

    try:
        return run_convert(args.source, args.target, args.max_shard_size)
    except (ValueError, OSError) as error:
        return failed("convert", error)


def _compress(args: argparse.Namespace) -> int:
    from ops.compress.command import run_compress

    try:
        return run_compress(compress_settings(args), json_report=args.json)
    except (ValueError, OSError) as error:
        return failed("compress", error)


def _inspect(args: argparse.Namespace) -> int:
    from ops.inspect_model import run_inspect

    try:
        return run_inspect(args.model, args.memory_per_device, as_json=args.json)
    except (ValueError, OSError) as error:
        return failed("inspect", error)
