"""The Instruct format of Mistral and Mixtral, version 1: a conversation to prompt token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from model.tokenizer import Tokenizer

ROLES: Final = ("system", "user", "assistant")
_BLANK_LINE: Final = "\n\n"


class ChatFormatError(ValueError):
    """A conversation that the format cannot express; the text names the message at fault."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn: its role ("system", "user" or "assistant") and its text."""

    role: str
    content: str


def render_instruct(tokenizer: Tokenizer, messages: Sequence[ChatMessage]) -> list[int]:
    """Ids of `<s>[INST] user [/INST] answer</s>[INST] user [/INST]`, ready to be answered.

    BOS and EOS are ids; every turn is tokenized on its own, its content untouched. System
    messages (first only; empty ones do not count) and the first user turn are joined by blank
    lines. ChatFormatError for other roles, roles that do not alternate, and a last turn that is
    not the user's. Source: mistral-common's InstructTokenizerV1.
    """
    turn_indices = _turns(messages)
    system = [message.content for message in messages[: turn_indices[0]] if message.content]
    ids = [tokenizer.bos_id]
    for index in turn_indices:
        message = messages[index]
        if message.role == "assistant":
            ids += _encode(tokenizer, index, message.content)
            ids.append(tokenizer.eos_id)
        else:
            lead = system if index == turn_indices[0] else []
            content = _BLANK_LINE.join([*lead, message.content])
            ids += _encode(tokenizer, index, f"[INST] {content} [/INST]")
    return ids


def _encode(tokenizer: Tokenizer, index: int, text: str) -> list[int]:
    try:
        return tokenizer.encode(text, add_bos=False)
    except ValueError as error:
        raise ChatFormatError(f"messages[{index}]: {error}") from error


def _turns(messages: Sequence[ChatMessage]) -> range:
    """Indices of the user and assistant turns, which follow the system messages; never empty."""
    if not messages:
        raise ChatFormatError("messages is empty; it needs at least one user message")
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            raise ChatFormatError(
                f"messages[{index}]: role {message.role!r} is not one of {', '.join(ROLES)}"
            )
    first = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    for index in range(first, len(messages)):
        expected = "user" if (index - first) % 2 == 0 else "assistant"
        role = messages[index].role
        if role == "system":
            raise ChatFormatError(
                f"messages[{index}]: a system message must come before all other messages"
            )
        if role != expected:
            raise ChatFormatError(
                f"messages[{index}]: roles must alternate, beginning with user;"
                f" expected {expected!r}, got {role!r}"
            )
    last = len(messages) - 1
    if first > last:
        raise ChatFormatError(f"messages[{last}]: a user message must follow the system message")
    if messages[last].role == "assistant":
        raise ChatFormatError(
            f"messages[{last}]: the last message must be the user's;"
            " to continue an assistant message is not supported"
        )
    return range(first, len(messages))
