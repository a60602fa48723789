"""The arguments of `windrose grafana` and `windrose top`. Imports nothing heavy."""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace

GRAFANA_EXAMPLES = """\
The token is one of a service account with the role Editor. What is there already is only written
where it differs; dashboards go to the folder Windrose.

examples:
  windrose grafana push --url http://127.0.0.1:3000 --token glsa_...
  GRAFANA_TOKEN=glsa_... windrose grafana push --url https://grafana.example.org
"""


def add_grafana_arguments(grafana: ArgumentParser) -> None:
    """Add `push` and its flags."""
    grafana.add_argument("action", choices=("push",), metavar="push", help="the only thing to do")
    grafana.add_argument("--url", required=True, metavar="URL", help="of the Grafana")
    grafana.add_argument("--token", metavar="TOKEN", help="default: GRAFANA_TOKEN's value")


def grafana_token(args: Namespace) -> str:
    """The token to use.

    Raises:
        ValueError: there is none.
    """
    token: str = args.token or os.environ.get("GRAFANA_TOKEN", "")
    if not token:
        raise ValueError("--token is missing, and GRAFANA_TOKEN is not set")
    return token


def add_top_arguments(top: ArgumentParser) -> None:
    """Add its flags."""
    top.add_argument("--layer", type=int, metavar="L", help="this layer; default: all together")
    top.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="S", help="seconds between two looks"
    )
    top.add_argument("--once", action="store_true", help="print one picture and exit")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 3600:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return value
