"""`python -m ops.chaos`: kill actors of a server under load, and see that nobody notices.

Every request has a twin that was answered in calm times. Each answer is compared with its twin,
gaps in the streams are timed, and at the end everything that the server holds is counted again.
Ends in one JSON line on stdout; progress goes to stderr. The exit status is 0 only where nothing
failed, nothing changed and nothing was left over.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import secrets
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from ops.chaos.errors import ChaosError
from ops.chaos.report import text, to_json, with_leaks
from ops.chaos.result import Found, Settings
from ops.chaos.served import serving
from ops.chaos.trial import run
from ops.client import ServerError
from ops.command_line import EXIT_INTERRUPTED, EXIT_USAGE
from ops.server_url import add_api_key, api_key_of

_EXAMPLES = """\
The actors must be processes of this machine, and this user's.

examples:
  python -m ops.chaos --url http://127.0.0.1:8000 --duration 60
  python -m ops.chaos --url http://127.0.0.1:8000 --kill expert --every 3 --signal stop
  python -m ops.chaos --serve configs/demo --serve-args "--dtype float32 --expert-actors 2"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """One run; returns 2 for arguments at fault, 1 where it did not pass or could not be made."""
    args = _parser().parse_args(argv)
    try:
        found = _served_run(args) if args.url is None else asyncio.run(_url_run(args))
    except (ValueError, ChaosError, ServerError, OSError) as error:
        print(f"ops.chaos: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    print(text(found), file=sys.stderr, flush=True)
    print(json.dumps(to_json(found), allow_nan=False), flush=True)
    return 0 if found.passed else 1


async def _url_run(args: argparse.Namespace) -> Found:
    return await run(_settings(args, args.url), api_key_of(args.api_key, os.environ))


def _served_run(args: argparse.Namespace) -> Found:
    with serving(args.serve, shlex.split(args.serve_args)) as served:
        found = asyncio.run(run(_settings(args, served.url)))
        return with_leaks(found, served.stop())


def _settings(args: argparse.Namespace, url: str) -> Settings:
    return Settings(
        url=url,
        duration_s=args.duration,
        kill=args.kill,
        every_s=args.every,
        signal=args.signal,
        seed=secrets.randbits(32) if args.seed is None else args.seed,
        streams=args.streams,
        max_tokens=args.max_tokens,
        settle_s=args.settle,
        vocab_size=args.vocab_size,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ops.chaos",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("--url", type=_url, help="of a running server")
    server.add_argument(
        "--serve", metavar="MODEL_DIR", help="start `windrose serve` for this run, and stop it"
    )
    add_api_key(parser)
    parser.add_argument(
        "--serve-args", default="", metavar="FLAGS", help="more flags of `windrose serve`, quoted"
    )
    parser.add_argument(
        "--duration", type=_seconds, default=300.0, metavar="S", help="default: %(default)g"
    )
    parser.add_argument(
        "--kill",
        type=_roles,
        default=("expert", "attention"),
        metavar="ROLE,ROLE,...",
        help="roles to strike, as /v1/experts names them: attention, expert, router, ingress, "
        "spare (default: expert,attention)",
    )
    parser.add_argument(
        "--every",
        type=_seconds,
        default=5.0,
        metavar="S",
        help="mean time between strikes (default: %(default)g); a strike waits until the one "
        "before is recovered from, but every fourth comes right after it",
    )
    parser.add_argument(
        "--signal",
        choices=("kill", "stop", "mix"),
        default="kill",
        help="kill: SIGKILL; stop: SIGSTOP, so that the actor hangs (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of all choices; default: a new one")
    parser.add_argument(
        "--streams", type=_count, default=32, metavar="N", help="at once (default: %(default)s)"
    )
    parser.add_argument(
        "--max-tokens",
        type=_count,
        default=128,
        metavar="N",
        help="of an answer; they have a quarter of it to all (default: %(default)s)",
    )
    parser.add_argument(
        "--settle",
        type=_seconds,
        default=15.0,
        metavar="S",
        help="rest before leaks are looked for (default: %(default)g)",
    )
    parser.add_argument(
        "--vocab-size",
        type=_count,
        default=2048,
        metavar="N",
        help="prompt ids are drawn below it; at most the model's (default: %(default)s)",
    )
    return parser


def _url(value: str) -> str:
    """The server's root, also from the base URL that OpenAI's clients take."""
    if not value.startswith("http://"):
        raise argparse.ArgumentTypeError(f"{value!r} does not begin with http://")
    return value.rstrip("/").removesuffix("/v1")


def _roles(value: str) -> tuple[str, ...]:
    roles = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    if not all(roles):
        raise argparse.ArgumentTypeError(f"{value!r} is no list of roles")
    return roles


def _seconds(value: str) -> float:
    seconds = float(value)
    if not math.isfinite(seconds) or seconds <= 0:
        raise argparse.ArgumentTypeError(f"{value!r} is no time above 0")
    return seconds


def _count(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number from 1 up")
    return int(value)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # SIGTERM ends it as Ctrl-C does: frozen actors and a server of our own must not stay.
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
