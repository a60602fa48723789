"""Where the server is and what opens it: `--url` and keys of all commands that talk to one.

Imports nothing heavy.
"""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError
from collections.abc import Mapping

from configs.environment import ADMIN_API_KEY, API_KEY

DEFAULT_URL = "http://127.0.0.1:8000"


def add_url(parser: ArgumentParser, *, inherited: bool = False) -> None:
    """Add --url; `inherited` where the command above has it too, whose value is then kept."""
    parser.add_argument(
        "--url",
        type=server_url,
        default=SUPPRESS if inherited else DEFAULT_URL,
        help=f"of the server (default: {DEFAULT_URL})",
    )


def add_api_key(parser: ArgumentParser, *, inherited: bool = False) -> None:
    """Add --api-key; `inherited` as for add_url."""
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        default=SUPPRESS if inherited else None,
        help=f"where the server wants one (default: the environment's {API_KEY})",
    )


def add_admin_api_key(parser: ArgumentParser) -> None:
    """Add --admin-api-key."""
    parser.add_argument(
        "--admin-api-key",
        metavar="KEY",
        help=f"where the server has one (default: the environment's {ADMIN_API_KEY})",
    )


def api_key_of(given: str | None, environment: Mapping[str, str]) -> str | None:
    """The key to send: the flag's, else the first of the environment's."""
    return given or next(iter(environment.get(API_KEY, "").split()), None)


def admin_api_key_of(
    given: str | None, api_key: str | None, environment: Mapping[str, str]
) -> str | None:
    """The key for a change; a server without an admin key takes the other."""
    admin = given or next(iter(environment.get(ADMIN_API_KEY, "").split()), None)
    return admin or api_key_of(api_key, environment)


def server_url(text: str) -> str:
    """The server's root, also from the base URL that OpenAI's clients take.

    Raises:
        ArgumentTypeError: `text` is no HTTP URL.
    """
    if not text.startswith(("http://", "https://")):
        raise ArgumentTypeError(f"{text!r} does not begin with http:// or https://")
    return text.rstrip("/").removesuffix("/v1")
