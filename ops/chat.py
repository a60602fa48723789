"""`windrose chat`: a conversation with a running server, in the terminal or in a pipe."""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from ops.client import ServerError, served_model, stream_chat

_HELP = """\
/help   show this
/clear  forget the conversation and start a new one
/quit   leave; so does Ctrl-D
Ctrl-C stops the answer that is being written."""
_LINE_FEED, _TAB = 10, 9
# What a terminal would obey instead of show: the C0 and C1 controls, and delete.
_CONTROLS = {
    code: None for code in (*range(32), *range(127, 160)) if code not in (_TAB, _LINE_FEED)
}


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """What is asked of every answer; None leaves it to the server."""

    model: str | None = None
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


class Conversation:
    """The turns so far, and the next one."""

    def __init__(self, client: httpx.Client, settings: ChatSettings) -> None:
        self._client = client
        self.model = served_model(client) if settings.model is None else settings.model
        given = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
        self._fields = {name: value for name, value in given.items() if value is not None}
        system = settings.system
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[dict[str, str]] = []

    def clear(self) -> None:
        """Forget every turn; what the system was told stays."""
        self._turns = []

    def say(self, text: str) -> None:
        """Print the answer to `text` as it comes; one that began ends with a line feed.

        What was printed of an answer that was interrupted or failed is part of the conversation;
        a turn without any answer is not, so that it can be tried again.

        Raises:
            ServerError: the answer cannot be had, or not all of it.
        """
        user = {"role": "user", "content": text}
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*self._opening, *self._turns, user],
            **self._fields,
        }
        for_terminal = sys.stdout.isatty()
        pieces: list[str] = []
        try:
            with closing(stream_chat(self._client, body)) as stream:
                for piece in stream:
                    pieces.append(piece)
                    shown = piece.translate(_CONTROLS) if for_terminal else piece
                    print(shown, end="", flush=True)
        finally:
            answer = "".join(pieces)
            if answer:
                self._turns += [user, {"role": "assistant", "content": answer}]
                print(flush=True)


def ask(client: httpx.Client, settings: ChatSettings, prompt: str) -> int:
    """One question: print its answer, and return the exit status.

    Raises:
        ServerError: as `Conversation.say`.
    """
    Conversation(client, settings).say(prompt)
    return 0


def converse(client: httpx.Client, settings: ChatSettings) -> int:
    """Answer line after line until the end of the input or /quit; returns the exit status.

    Raises:
        ServerError: there is no server; or, where nobody sits at a terminal, any failed answer.
    """
    conversation = Conversation(client, settings)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        # Where Python has it, importing it gives input() line editing and a history.
        with suppress(ImportError):
            import readline  # noqa: F401
        print(f"{conversation.model} at {client.base_url}  (/help, /quit)")
    while True:
        try:
            line = input("> " if interactive else "").strip()
            if line == "/quit":
                return 0
            if line:
                _take(conversation, line, interactive)
        except KeyboardInterrupt:
            print(flush=True)  # behind the ^C that the terminal shows
        except EOFError:
            if interactive:
                print()
            return 0


def _take(conversation: Conversation, line: str, interactive: bool) -> None:
    """One line that is not empty and does not leave."""
    if line == "/help":
        print(_HELP)
    elif line == "/clear":
        conversation.clear()
        print("a new conversation")
    elif line.startswith("/"):
        print(f"there is no {line.split()[0]}; /help shows what there is")
    else:
        try:
            conversation.say(line)
        except ServerError as error:
            if not interactive:
                raise
            print(f"windrose chat: {error}", file=sys.stderr)
