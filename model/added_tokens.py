"""Tokens that Hugging Face's tokenizer of a checkpoint has beside those of its tokenizer.model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.config_file import ConfigError, read_object
from model.tokenizer import Tokenizer


def unknown_tokens(directory: Path, tokenizer: Tokenizer) -> set[str]:
    """Spellings of added tokens that the SentencePiece model does not have at their ids.

    Fine-tunes add them for their chat formats ("<|im_start|>").

    Raises:
        ConfigError: a file of the tokenizer's cannot be read.
    """
    pieces = tokenizer.pieces
    return {
        spelling
        for file in ("tokenizer_config.json", "tokenizer.json", "added_tokens.json")
        for token_id, spelling in _added(directory / file)
        if not (0 <= token_id < len(pieces) and pieces[token_id] == spelling)
    }


def _added(file: Path) -> Iterator[tuple[int, str]]:
    """(id, spelling) of each added token of one of these files; nothing where it is not there."""
    if not file.exists():
        return
    values = read_object(file)
    try:
        if file.name == "added_tokens.json":
            found: list[tuple[Any, Any]] = [(i, spelling) for spelling, i in values.items()]
        elif file.name == "tokenizer.json":
            found = [(one["id"], one["content"]) for one in values.get("added_tokens") or ()]
        else:
            decoder = values.get("added_tokens_decoder") or {}
            found = [(i, one["content"]) for i, one in decoder.items()]
        for token_id, spelling in found:
            yield int(token_id), str(spelling)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file}: its added tokens are not as transformers has them") from error
