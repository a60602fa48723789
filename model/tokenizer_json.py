"""A SentencePiece vocabulary as tokenizer.json, which transformers 5 reads before tokenizer.model.

Without one it makes a tokenizer of tokenizer.model by itself that puts no space before a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from model.tokenizer import Tokenizer

_SPACE: Final = "\u2581"


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The same byte-pair encoding in the format of the `tokenizers` library, with BOS in front."""
    pieces, scores = tokenizer.pieces, tokenizer.scores
    bos = pieces[tokenizer.bos_id]
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    text = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    control = sorted(tokenizer.control_ids.items(), key=lambda pair: pair[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_control_token(piece, token_id) for piece, token_id in control],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text[0]],
            "pair": [begin, text[0], begin, text[1]],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[tokenizer.unk_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: token_id for token_id, piece in enumerate(pieces)},
            "merges": _merges(pieces, scores),
        },
    }


def _control_token(piece: str, token_id: int) -> dict[str, Any]:
    token = {"id": token_id, "content": piece, "special": True}
    return token | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def _merges(pieces: Sequence[str], scores: Sequence[float]) -> list[list[str]]:
    """Every way to halve a piece into pieces, those of a higher score first, as SentencePiece."""
    ids = {piece: token_id for token_id, piece in enumerate(pieces)}
    halves = [
        (-scores[token_id], ids[piece[:cut]], ids[piece[cut:]])
        for piece, token_id in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    return [[pieces[left], pieces[right]] for _, left, right in sorted(halves)]
