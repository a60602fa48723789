"""Train the demo checkpoint's SentencePiece model and write its tokenizer files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

CONTROL_PIECES = ("<unk>", "<s>", "</s>")
FIRST_TEXT_ID = len(CONTROL_PIECES) + 256

# The Instruct format of Mixtral: a system text and the first user turn share one [INST].
CHAT_TEMPLATE = (
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] + '\\n\\n' -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{{- bos_token -}}"
    "{%- for turn in turns -%}"
    "{%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('after an optional system message, roles must alternate "
    "user/assistant/user/...') -}}{%- endif -%}"
    "{%- if turn['role'] == 'user' -%}"
    "{{- '[INST] ' + (system if loop.first else '') + turn['content'] + ' [/INST]' -}}"
    "{%- elif turn['role'] == 'assistant' -%}{{- ' ' + turn['content'] + eos_token -}}"
    "{%- else -%}{{- raise_exception('only user and assistant roles are supported') -}}"
    "{%- endif -%}{%- endfor -%}"
)


def train_sentencepiece(lines: Iterable[str], vocab_size: int) -> bytes:
    """A byte-fallback BPE model with Mistral's conventions: no normalization, digits split."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        add_dummy_prefix=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        num_threads=1,
        minloglevel=1,
    )
    return model.getvalue()


def write_tokenizer_files(folder: Path, model: bytes, max_length: int) -> None:
    """Write tokenizer.model, tokenizer.json and tokenizer_config.json, the latter two derived."""
    (folder / "tokenizer.model").write_bytes(model)
    _fast_tokenizer(model).save(str(folder / "tokenizer.json"))
    control = {
        str(i): {
            "content": piece,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, piece in enumerate(CONTROL_PIECES)
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": control,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": max_length,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _fast_tokenizer(model: bytes) -> Tokenizer:
    """The same BPE in the `tokenizers` library: a merge for every way to halve a piece."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    ids = {piece: i for i, piece in enumerate(pieces)}
    # A lower id was merged earlier, so it is preferred, as its higher score is in SentencePiece.
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces[FIRST_TEXT_ID:]
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    tokenizer = Tokenizer(
        BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(piece, normalized=False, special=True) for piece in CONTROL_PIECES]
    )
    return tokenizer
