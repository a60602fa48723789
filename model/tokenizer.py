"""Text to token ids and back, by a checkpoint's tokenizer.model (SentencePiece, byte fallback)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Self

from sentencepiece import SentencePieceProcessor

from model.config_file import read_object

TOKENIZER_FILE: Final = "tokenizer.model"
_SPACE: Final = "\u2581"  # SentencePiece's meta symbol, which stands for a space inside a piece
# Runs of spaces, a tab, a ligature, a character that no vocabulary holds and a line feed.
_PROBE: Final = "a  b\t\ufb01\U0010fffd \n"


class Tokenizer:
    """The vocabulary of one checkpoint. Immutable once made, and safe to share between threads.

    `fragments[id]` is what a token adds in the middle of a text: a str ("" for control tokens
    such as BOS and EOS), or an int, the one raw byte of a byte-fallback piece.
    """

    def __init__(self, processor: SentencePieceProcessor) -> None:
        self._processor = processor
        self.bos_id: Final[int] = processor.bos_id()
        self.eos_id: Final[int] = processor.eos_id()
        self.unk_id: Final[int] = processor.unk_id()
        self.vocab_size: Final[int] = processor.vocab_size()
        self._pieces: Final[list[str]] = processor.id_to_piece(list(range(self.vocab_size)))
        self.fragments: Final[tuple[str | int, ...]] = tuple(
            self._fragment(token_id, piece) for token_id, piece in enumerate(self._pieces)
        )

    @classmethod
    def from_dir(cls, path: str | Path) -> Self:
        """Read `tokenizer.model` in the checkpoint directory `path`.

        ValueError, with the file's name, where it is missing, unreadable, or not of Mixtral's
        kind: BOS and EOS, byte fallback, a dummy prefix space, and text left as it is.
        """
        file = Path(path) / TOKENIZER_FILE
        if not file.is_file():
            raise ValueError(f"{file}: no such file; a checkpoint needs its SentencePiece model")
        try:
            processor = SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{file}: not a SentencePiece model: {error}") from error
        if processor.bos_id() < 0 or processor.eos_id() < 0:
            raise ValueError(f"{file}: the vocabulary has no BOS or no EOS token")
        ids = processor.encode(_PROBE)
        prefixed = processor.id_to_piece(ids[0]).startswith(_SPACE)
        if not prefixed or processor.decode(ids) != _PROBE:
            raise ValueError(
                f"{file}: text does not come back as it went in; it must be trained with"
                " byte_fallback=True, add_dummy_prefix=True, remove_extra_whitespaces=False and"
                " normalization_rule_name='identity', as Mixtral's is"
            )
        return cls(processor)

    @staticmethod
    def adds_eos(path: str | Path) -> bool:
        """Whether tokenizer_config.json in `path` wants an EOS token behind a text by itself.

        Raises:
            ConfigError: it is not JSON.
        """
        file = Path(path) / "tokenizer_config.json"
        return file.exists() and read_object(file).get("add_eos_token") is True

    @cached_property
    def control_ids(self) -> dict[str, int]:
        """Ids of the control tokens and of <unk>, by their spelling."""
        return {
            piece: i
            for i, piece in enumerate(self._pieces)
            if self._processor.is_control(i) or self._processor.is_unknown(i)
        }

    @property
    def pieces(self) -> Sequence[str]:
        """The vocabulary's spellings, by id."""
        return self._pieces

    @property
    def scores(self) -> Sequence[float]:
        """By id: of two merges the one into the piece with the higher score is made first."""
        scores: list[float] = self._processor.get_score(list(range(self.vocab_size)))
        return scores

    @cached_property
    def _unprefixed(self) -> SentencePieceProcessor:
        """The same vocabulary, without a prefix space."""
        # Protobuf merges what is appended: normalizer_spec (3) { add_dummy_prefix (3): false }.
        proto = self._processor.serialized_model_proto() + b"\x1a\x02\x18\x00"
        return SentencePieceProcessor(model_proto=proto)

    def encode(self, text: str, *, add_bos: bool, prefix: bool = True) -> list[int]:
        """Ids of `text` behind SentencePiece's prefix space; [] (or BOS alone) for "".

        Without `prefix` no space is put before it: as in the middle of a text.

        Text that spells a special token ("</s>", "<0x0A>") is text: only `add_bos` makes a
        control id. U+2581 comes back as a space. ValueError for half of a surrogate pair.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text is not valid Unicode: lone surrogate at character {error.start}"
            ) from error
        processor = self._processor if prefix else self._unprefixed
        ids: list[int] = processor.encode(text)
        return [self.bos_id, *ids] if add_bos else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a whole id sequence, without control tokens and without the prefix space.

        Each byte that is no part of a UTF-8 character gives one U+FFFD. An id past the
        vocabulary (a padded row of lm_head) counts as a control token; ValueError below 0.
        """
        size, nothing = self.vocab_size, self.bos_id
        if min(ids, default=0) < 0:
            raise ValueError(f"token id {min(ids)} is negative")
        text: str = self._processor.decode([i if i < size else nothing for i in ids])
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes that a token adds in the middle of a text; b"" for control tokens."""
        if token_id >= self.vocab_size:
            return b""
        fragment = self.fragments[token_id]
        return fragment.encode() if isinstance(fragment, str) else bytes((fragment,))

    def token_text(self, token_id: int) -> str:
        """A token on its own, to show beside its logprob.

        Control tokens and bytes above 0x7F, which are no text alone, show as their piece
        ("</s>", "<0xE2>"); an id past the vocabulary shows as "".
        """
        if token_id >= self.vocab_size:
            return ""
        fragment = self.fragments[token_id]
        if isinstance(fragment, int):
            return chr(fragment) if fragment < 0x80 else self._pieces[token_id]
        if token_id == self.unk_id:
            return self._pieces[token_id]
        return fragment or self._pieces[token_id]

    def _fragment(self, token_id: int, piece: str) -> str | int:
        if self._processor.is_control(token_id):
            return ""
        if self._processor.is_byte(token_id):
            return int(piece.removeprefix("<0x").removesuffix(">"), 16)
        if self._processor.is_unknown(token_id):
            surface: str = self._processor.decode([token_id])
            return surface
        return piece.replace(_SPACE, " ")
