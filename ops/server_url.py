"""Where the server is: `--url` of all commands that talk to one. Imports nothing heavy."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError

DEFAULT_URL = "http://127.0.0.1:8000"


def add_url(parser: ArgumentParser, *, inherited: bool = False) -> None:
    """Add --url; `inherited` where the command above has it too, whose value is then kept."""
    parser.add_argument(
        "--url",
        type=server_url,
        default=SUPPRESS if inherited else DEFAULT_URL,
        help=f"of the server (default: {DEFAULT_URL})",
    )


def server_url(text: str) -> str:
    """The server's root, also from the base URL that OpenAI's clients take.

    Raises:
        ArgumentTypeError: `text` is no HTTP URL.
    """
    if not text.startswith(("http://", "https://")):
        raise ArgumentTypeError(f"{text!r} does not begin with http:// or https://")
    return text.rstrip("/").removesuffix("/v1")
