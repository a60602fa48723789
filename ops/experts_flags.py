"""The arguments of `windrose experts` and of the changes below it. Imports nothing heavy."""

from __future__ import annotations

from argparse import (
    SUPPRESS,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Sequence
from typing import Any

from ops.server_url import add_admin_api_key, add_api_key, add_url

EXPERTS_EXAMPLES = """\
A token counts for each of the experts its gate chose, in every layer. Balancedness is mean over
max load: 1 is even. The changes take effect while requests run.

examples:
  windrose experts
  windrose experts --layer 0
  windrose experts --watch
  windrose experts --repeat-rate
  windrose experts --json
  windrose experts replicate 3
  windrose experts rebalance --dry-run
  windrose experts drop --help
"""

_NOTES = """
The command ends when the change is in force in every pipeline; requests go on meanwhile. Ctrl-C
ends the wait and not the change. `windrose experts` shows which rank holds what.

examples:
"""

_REPLICATE = """\
Let one more rank hold EXPERT, so that the two share its rows. The rank loads the weights first.
"""
_REPLICATE_EXAMPLES = """\
  windrose experts replicate 3                   in all layers, on the least busy rank
  windrose experts replicate 3 --layer 0 --to 2  in layer 0 only, on rank 2
"""
_MOVE = """\
Take EXPERT from one rank to another: the new one loads the weights, then the old one drops them.
"""
_MOVE_EXAMPLES = """\
  windrose experts move 3                        from its busiest rank to the least busy one
  windrose experts move 3 --from 1 --to 2
  windrose experts move 3 --layer 0 --to 2
"""
_DROP = """\
Let a rank hold EXPERT no longer: what `replicate` added goes again. The last holder keeps it.
"""
_DROP_EXAMPLES = """\
  windrose experts drop 3                        from the busiest of its ranks
  windrose experts drop 3 --layer 0 --rank 2
"""
_REBALANCE = """\
Place all experts as the balancer would for the load counted so far.
"""
_REBALANCE_EXAMPLES = """\
  windrose experts rebalance --dry-run           what it would add and drop
  windrose experts rebalance
"""
_SCALE = """\
Serve with N expert actors in every pipeline from now on, more or fewer than before.
"""
_SCALE_EXAMPLES = """\
  windrose experts scale --expert-actors 4
"""

CHANGES = ("replicate", "move", "drop", "rebalance", "scale")
_BODY = "body."  # begins the names of the arguments that are sent


def add_experts_arguments(
    experts: ArgumentParser, change: Callable[[Namespace], int], argv: Sequence[str]
) -> None:
    """Add the flags of `experts`, and the changes, which `change` is to run.

    `argv` is the command line from `experts` on.
    """
    form = experts.add_mutually_exclusive_group()
    form.add_argument("--layer", type=int, metavar="L", help="this layer; default: all together")
    form.add_argument(
        "--repeat-rate",
        action="store_true",
        help="how often a token goes to an expert of the token before it",
    )
    experts.add_argument(
        "--watch", action="store_true", help="the load of the last seconds, again and again"
    )
    form.add_argument("--json", action="store_true", help="what GET /v1/experts answers, as it is")
    # With a place for a change, `experts --lay 1` would be told that "1" is none, not of --lay.
    if argv[1:2] and argv[1].startswith("-") and not {"-h", "--help", *CHANGES} & set(argv):
        return
    experts.usage = (
        "%(prog)s [--url URL] [--api-key KEY] [--layer L | --repeat-rate | --json] [--watch]\n"
        "       %(prog)s CHANGE ..."
    )
    changes = experts.add_subparsers(title="changes", metavar="CHANGE", prog=experts.prog)

    def add(name: str, about: str, description: str, examples: str) -> ArgumentParser:
        parser: ArgumentParser = changes.add_parser(
            name,
            help=about,
            description=description,
            epilog=_NOTES + examples,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.set_defaults(run=change, parser=parser, change=name)
        return parser

    replicate = add("replicate", "one more rank for an expert", _REPLICATE, _REPLICATE_EXAMPLES)
    _add_expert(replicate)
    _add_rank(replicate, "to", "the one to hold it too; default: the least busy")
    move = add("move", "an expert from one rank to another", _MOVE, _MOVE_EXAMPLES)
    _add_expert(move)
    _add_rank(move, "from", "the one to give it up; default: the busiest of its holders")
    _add_rank(move, "to", "the one to take it; default: the least busy")
    drop = add("drop", "one rank less for an expert", _DROP, _DROP_EXAMPLES)
    _add_expert(drop)
    _add_rank(drop, "rank", "the one to give it up; default: the busiest of its holders")
    rebalance = add("rebalance", "all experts as the load asks", _REBALANCE, _REBALANCE_EXAMPLES)
    rebalance.add_argument(
        "--dry-run", dest=f"{_BODY}dry_run", action="store_true", help="only say how"
    )
    scale = add("scale", "more or fewer expert actors", _SCALE, _SCALE_EXAMPLES)
    scale.add_argument(
        "--expert-actors",
        dest=f"{_BODY}expert_actors",
        type=_count,
        required=True,
        metavar="N",
        help="of each pipeline",
    )
    for parser in (replicate, move, drop, rebalance, scale):
        _add_output(parser)


def change_body(args: Namespace) -> dict[str, Any]:
    """What to send for a parsed change: the arguments that were given."""
    return {
        name.removeprefix(_BODY): value
        for name, value in vars(args).items()
        if name.startswith(_BODY) and value is not None
    }


def _add_expert(parser: ArgumentParser) -> None:
    parser.add_argument(
        f"{_BODY}expert", type=_index, metavar="EXPERT", help="its index, from 0, in its layer"
    )
    parser.add_argument(
        "--layer",
        dest=f"{_BODY}layer",
        type=_index,
        metavar="L",
        help="in this layer only; default: in all",
    )


def _add_rank(parser: ArgumentParser, name: str, about: str) -> None:
    parser.add_argument(f"--{name}", dest=f"{_BODY}{name}", type=_index, metavar="RANK", help=about)


def _add_output(parser: ArgumentParser) -> None:
    add_url(parser, inherited=True)
    add_api_key(parser, inherited=True)
    add_admin_api_key(parser)
    parser.add_argument(
        "--json", action="store_true", default=SUPPRESS, help="what the server answers, as it is"
    )


def _index(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)
