from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import mistral_common
import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model.tokenizer import Tokenizer

# The tokenizer.model of Mistral-7B and Mixtral-8x7B, as mistral-common ships it.
MIXTRAL_MODEL = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
SPECIAL_SPELLINGS = ("<unk>", "<s>", "</s>")
TEXTS = (
    "The wind rose has eight directions.",
    "L'été dernier, où êtes-vous allés ? À Nîmes, « bien sûr ».",
    "Größe, Straße und die Übung: fünfzig Äpfel.",
    "¿Qué tal, señor Núñez? ¡Mañana será otro día!",
    "Perché no? La città è più bella di così.",
    "日本語と中文和한국어",
    "😀👩‍👩‍👧 🏴‍☠️ e\u0301 \U0010fffd",
    "def f(x):\n    return {'a': [x] * 2}\n\n\tif True:\r\n\t\tpass",
    " one space before",
    "   three before,  two  inside, two after  ",
    "\n\n",
    " ",
    "\x00\x01\x7f",
    "",
)
ANY_TEXT = st.one_of(
    st.text(),
    st.lists(st.sampled_from([*TEXTS, " ", "  ", "\t", "[INST]", "<0x41>", "a"])).map("".join),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("checkpoint")
    shutil.copy(MIXTRAL_MODEL, directory / "tokenizer.model")
    return Tokenizer.from_dir(directory)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """transformers' tokenizer over a tokenizer.json in the layout that Mixtral publishes."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(MIXTRAL_MODEL))
    pieces = processor.id_to_piece(list(range(processor.vocab_size())))
    scores = dict(zip(pieces, processor.get_score(list(range(len(pieces)))), strict=True))
    vocab = {piece: token_id for token_id, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces[259:], key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    fast = FastTokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast.add_special_tokens(
        [AddedToken(piece, normalized=False, special=True) for piece in SPECIAL_SPELLINGS]
    )
    directory = tmp_path_factory.mktemp("fast")
    fast.save(str(directory / "tokenizer.json"))
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, **specials}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
    return loaded


def test_special_ids_and_size(tokenizer: Tokenizer) -> None:
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.vocab_size == 32000


def test_a_known_sentence_has_the_published_ids(tokenizer: Tokenizer) -> None:
    # "[INST]" and "[/INST]" are the ids that Mistral AI documents for the v1 format.
    assert tokenizer.encode("[INST]", add_bos=False) == [733, 16289, 28793]
    assert tokenizer.encode("[/INST]", add_bos=True) == [1, 733, 28748, 16289, 28793]


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_exactly(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_bos=True)) == text


@given(text=ANY_TEXT)
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_exactly(tokenizer: Tokenizer, text: str) -> None:
    assume("\u2581" not in text)
    ids = tokenizer.encode(text, add_bos=False)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id} & set(ids)
    joined = b"".join(map(tokenizer.token_bytes, ids))
    assert joined == (b" " + text.encode() if text else b"")


def test_the_meta_symbol_in_a_text_is_a_space(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\u2581b", add_bos=False)) == "a b"


@given(text=ANY_TEXT)
@settings(max_examples=300, deadline=None)
def test_encode_and_decode_equal_transformers(
    tokenizer: Tokenizer, reference: PreTrainedTokenizerBase, text: str
) -> None:
    # transformers turns the spelling of a special token into the token; this server never does.
    assume(not any(spelling in text for spelling in SPECIAL_SPELLINGS))
    ids = tokenizer.encode(text, add_bos=False)
    assert ids == reference.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == reference.decode(ids)


@pytest.mark.parametrize(
    "text", ["</s>", "<s>", "<unk>", "a</s>b", "[INST]", "<s>[INST] hi [/INST]</s>"]
)
def test_spelled_control_tokens_stay_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_bos=False)
    assert min(ids) > 258  # neither control tokens (0 to 2) nor byte pieces (3 to 258)
    assert tokenizer.decode(ids) == text


def test_spelled_byte_pieces_stay_text(tokenizer: Tokenizer) -> None:
    for byte in range(256):
        ids = tokenizer.encode(f"<0x{byte:02X}>", add_bos=False)
        assert min(ids) > 258


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="lone surrogate at character 3"):
        tokenizer.encode("abc\ud83d", add_bos=False)


def test_decode_skips_control_tokens(tokenizer: Tokenizer) -> None:
    hello = tokenizer.encode("hello", add_bos=False)
    assert tokenizer.decode([1, *hello, 2]) == "hello"
    assert tokenizer.decode([1, 1, *hello, 2, *hello]) == "hello hello"
    assert tokenizer.decode([]) == ""


def test_decode_of_ids_outside_the_vocabulary(tokenizer: Tokenizer) -> None:
    hello = tokenizer.encode("hello", add_bos=False)
    assert tokenizer.decode([32000, *hello, 99999]) == "hello"
    with pytest.raises(ValueError, match="-1 is negative"):
        tokenizer.decode([*hello, -1])


def test_token_bytes(tokenizer: Tokenizer) -> None:
    (the,) = tokenizer.encode("the", add_bos=False)
    assert tokenizer.token_bytes(the) == b" the"
    assert [tokenizer.token_bytes(3 + byte) for byte in range(256)] == [
        bytes((byte,)) for byte in range(256)
    ]
    assert [tokenizer.token_bytes(i) for i in (1, 2, 32000)] == [b"", b"", b""]
    assert tokenizer.token_bytes(0).decode() == tokenizer.decode([0])


def test_token_bytes_equal_sentencepiece_behind_a_word(tokenizer: Tokenizer) -> None:
    word = tokenizer.encode("x", add_bos=False)
    for token_id in (0, 1, 2, *range(259, 32000, 7)):
        whole = tokenizer.decode([*word, token_id])
        assert b"x" + tokenizer.token_bytes(token_id) == whole.encode()


def test_token_text(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_text(i) for i in (0, 1, 2)] == ["<unk>", "<s>", "</s>"]
    assert tokenizer.token_text(tokenizer.encode("the", add_bos=False)[0]) == " the"
    assert [tokenizer.token_text(3 + byte) for byte in (0x0A, 0x7F)] == ["\n", "\x7f"]
    assert [tokenizer.token_text(3 + byte) for byte in (0x80, 0xE2)] == ["<0x80>", "<0xE2>"]
    assert tokenizer.token_text(32000) == ""


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.model: no such file"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("keep", [0, 1000, 200_000])
def test_a_broken_file_is_named(tmp_path: Path, keep: int) -> None:
    (tmp_path / "tokenizer.model").write_bytes(MIXTRAL_MODEL.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"tokenizer\.model: not a SentencePiece model"):
        Tokenizer.from_dir(str(tmp_path))


@pytest.mark.parametrize(
    "changed",
    [
        {"byte_fallback": False},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nmt_nfkc"},
        {"normalization_rule_name": "nfkc"},
        {"bos_id": -1},
        {"eos_id": -1},
        {},
    ],
    ids=str,
)
def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    options: dict[str, Any] = {
        "byte_fallback": True,
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        **changed,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the wind rose shows the wind"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=285,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    if changed:
        with pytest.raises(ValueError, match=r"tokenizer\.model: "):
            Tokenizer.from_dir(tmp_path)
    else:
        assert Tokenizer.from_dir(tmp_path).decode([1, 2]) == ""
