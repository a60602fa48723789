"""The `windrose` command: reads its arguments and hands over.

What a command needs is imported when it runs: `--help` must not wait for Ray and torch.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from ops.checkpoint_commands import add_checkpoint_commands
from ops.command_line import EXIT_INTERRUPTED, EXIT_USAGE, Run, failed
from ops.experts_flags import EXPERTS_EXAMPLES, add_experts_arguments, change_body
from ops.server_url import add_api_key, add_url, admin_api_key_of, api_key_of
from ops.watch_flags import (
    GRAFANA_EXAMPLES,
    add_grafana_arguments,
    add_top_arguments,
    grafana_token,
)

_EXAMPLES = """\
examples:
  windrose serve configs/demo                       serve the demo checkpoint on port 8000
  windrose serve configs/demo --expert-actors 2     its experts in two actors of their own
  windrose chat                                     talk to it
  windrose chat "What is a wind rose?"              ask one question
  windrose experts                                  who serves which expert, how loaded each is
  windrose experts replicate 3                      a second rank for a hot expert
  windrose convert SRC DST                          Mistral's own files to Hugging Face's layout
  windrose inspect MODEL_DIR                        what it is, and which topologies would fit
  windrose top                                      watch requests, actors and experts

`windrose COMMAND --help` tells more.
"""

_SERVE_EXAMPLES = """\
Every flag is also a key of --config FILE, with underscores: `--max-num-seqs 8` on the command
line is `max_num_seqs: 8` in the file. A file for `serve run` or `serve deploy` works too.

examples:
  windrose serve configs/demo
  windrose serve configs/demo --expert-actors 2 --threads-per-actor 1
  windrose serve /models/Mixtral-8x7B-Instruct-v0.1 --device cuda --expert-actors 4
  windrose serve --config configs/demo.yaml --port 9000

It joins the Ray cluster that RAY_ADDRESS names and starts one of its own otherwise. Ctrl-C or
SIGTERM: accepted requests finish, then everything it started ends.
"""

_CHAT_EXAMPLES = """\
Without PROMPT it is a conversation: /help, /clear, /quit (or Ctrl-D); Ctrl-C stops an answer.

examples:
  windrose chat
  windrose chat --system "Answer in French." --temperature 0
  windrose chat --max-tokens 40 "Tell me about mayonnaise" > answer.txt
"""


class _OneLineErrors(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse would print all the flags before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 2 for arguments at fault, 1 for a failure."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 shows "?"
            stream.reconfigure(errors="replace")
    args, unknown = _parser(argv).parse_known_args(argv)
    if unknown:
        args.parser.error(f"unknown: {' '.join(unknown)}")
    run: Run = args.run
    try:
        return run(args)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whatever read the output has seen enough; keep Python's last flush quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _OneLineErrors(
        prog="windrose",
        description="Serve Mixtral with its experts in actors of their own, and talk to it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"windrose {_version()}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_OneLineErrors
    )

    command = partial(_add_command, commands)

    serve = command("serve", _serve, "serve a checkpoint over HTTP", _SERVE_EXAMPLES)
    if argv[:1] == ["serve"]:
        # The schema takes longer to import than all the rest of --help.
        from ops.flags import add_serve_flags

        serve.usage = "%(prog)s MODEL_DIR [--config FILE] [--FLAG VALUE ...]"
        add_serve_flags(serve)

    chat = command("chat", _chat, "talk to a running server", _CHAT_EXAMPLES)
    add_url(chat)
    add_api_key(chat)
    chat.add_argument("--model", metavar="NAME", help="default: the one the server has")
    chat.add_argument("--system", metavar="TEXT", help="how the model is to answer")
    chat.add_argument(
        "--temperature", type=_finite, metavar="T", help="0: always the likeliest token"
    )
    chat.add_argument("--max-tokens", type=int, metavar="N", help="longest answer, in tokens")
    chat.add_argument("prompt", nargs="*", metavar="PROMPT", help="ask this only, and exit")

    experts = command(
        "experts",
        _experts,
        "show who serves which expert and how loaded each is, or change it",
        EXPERTS_EXAMPLES,
    )
    add_url(experts)
    add_api_key(experts)
    add_experts_arguments(experts, _change, argv)

    grafana = command("grafana", _push, "bring the dashboards into a Grafana", GRAFANA_EXAMPLES)
    add_grafana_arguments(grafana)
    top = command("top", _top, "watch a running server: requests, actors and experts, live")
    add_url(top)
    add_api_key(top)
    add_top_arguments(top)

    add_checkpoint_commands(command)

    command("version", _print_version, "print the version")
    return parser


def _add_command(
    commands: argparse._SubParsersAction[_OneLineErrors],
    name: str,
    run: Run,
    about: str,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    added = commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    added.set_defaults(run=run, parser=added)
    return added


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def _serve(args: argparse.Namespace) -> int:
    from ops.flags import serve_config

    try:
        config = serve_config(args)
    except (ValueError, OSError) as error:
        return failed("serve", error, EXIT_USAGE)
    from ops.serve import serve

    return serve(config)


def _chat(args: argparse.Namespace) -> int:
    from ops.chat import ChatSettings, ask, converse
    from ops.client import ServerError, connect

    settings = ChatSettings(args.model, args.system, args.temperature, args.max_tokens)
    try:
        with connect(args.url, api_key_of(args.api_key, os.environ)) as client:
            if args.prompt:
                return ask(client, settings, " ".join(args.prompt))
            return converse(client, settings)
    except ServerError as error:
        return failed("chat", error)


def _experts(args: argparse.Namespace) -> int:
    from ops.client import ServerError
    from ops.experts import Form, show_experts

    try:
        api_key = api_key_of(args.api_key, os.environ)
        if args.watch and (args.json or args.repeat_rate):
            raise ValueError("--watch shows the load: --json and --repeat-rate do not go with it")
        if args.watch:
            from ops.top import watch_experts

            return watch_experts(args.url, api_key, layer=args.layer)
        form: Form = "json" if args.json else "repeats" if args.repeat_rate else "load"
        return show_experts(args.url, api_key, layer=args.layer, form=form)
    except ServerError as error:
        return failed("experts", error)
    except ValueError as error:
        return failed("experts", error, EXIT_USAGE)


def _change(args: argparse.Namespace) -> int:
    from ops.client import ServerError
    from ops.placement import change_placement

    if args.layer is not None:
        args.parser.error(f"--layer before {args.change} has no meaning")
    try:
        api_key = admin_api_key_of(args.admin_api_key, args.api_key, os.environ)
        body = change_body(args)
        return change_placement(args.url, api_key, args.change, body, as_json=args.json)
    except ServerError as error:
        return failed(f"experts {args.change}", error)


def _push(args: argparse.Namespace) -> int:
    from ops.grafana.push import PushError, push

    try:
        return push(args.url, grafana_token(args))
    except PushError as error:
        return failed("grafana push", error)
    except ValueError as error:
        return failed("grafana push", error, EXIT_USAGE)


def _top(args: argparse.Namespace) -> int:
    from ops.client import ServerError
    from ops.top import watch_server

    try:
        return watch_server(
            args.url,
            api_key_of(args.api_key, os.environ),
            layer=args.layer,
            interval_s=args.interval,
            once=args.once,
        )
    except ServerError as error:
        return failed("top", error)
    except ValueError as error:
        return failed("top", error, EXIT_USAGE)


def _print_version(_args: argparse.Namespace) -> int:
    print(f"windrose {_version()}")
    return 0


def _version() -> str:
    from importlib.metadata import version

    return version("windrose")


if __name__ == "__main__":
    sys.exit(main())
