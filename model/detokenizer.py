"""Text of a token stream, piece by piece, as whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Final

from model.tokenizer import Tokenizer

_INVALID: Final = "\ufffd"


class IncrementalDetokenizer:
    """One stream's token ids to text. The chunks joined equal `Tokenizer.decode` of all ids.

    Constant work per token. At most three bytes of an unfinished character are held back.
    `keep_leading_space` keeps the space that a whole decode drops in front: right for text that
    goes on from a prompt (a completion), wrong for one that stands alone (a chat answer).
    """

    def __init__(self, tokenizer: Tokenizer, *, keep_leading_space: bool = False) -> None:
        self._fragments = tokenizer.fragments
        self._vocab_size = tokenizer.vocab_size
        self._unk_id = tokenizer.unk_id
        self._at_start = not keep_leading_space
        self._held = b""  # what there is of an unfinished character

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that these ids complete, perhaps "". ValueError for a negative id."""
        out: list[str] = []
        for token_id in token_ids:
            if token_id < 0:
                raise ValueError(f"token id {token_id} is negative")
            fragment = self._fragments[token_id] if token_id < self._vocab_size else ""
            if isinstance(fragment, int):
                out.append(self._push_byte(fragment))
                continue
            if self._held:  # anything but a byte ends the character, control tokens too
                out.append(self.finish())
            if self._at_start and fragment:
                self._at_start = False
                if token_id != self._unk_id:  # its surface begins with a space of its own
                    fragment = fragment.removeprefix(" ")
            out.append(fragment)
        return "".join(out)

    def finish(self) -> str:
        """What is still held: one U+FFFD for each byte of a character that never came."""
        text = _INVALID * len(self._held)
        self._held = b""
        return text

    def _push_byte(self, byte: int) -> str:
        self._at_start = False  # a byte always shows, be it as U+FFFD, so no prefix follows
        held = self._held + bytes((byte,))
        out = ""
        while held:
            try:
                text, used = codecs.utf_8_decode(held, "strict", False)
            except UnicodeDecodeError:
                # SentencePiece gives up one byte at a time, not Python's longest bad prefix.
                text, used = _INVALID, 1
            if used == 0:
                break
            out += text
            held = held[used:]
        self._held = held
        return out
