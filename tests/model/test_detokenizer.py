from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import mistral_common
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.detokenizer import IncrementalDetokenizer
from model.tokenizer import Tokenizer

MIXTRAL_MODEL = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
FIRST_BYTE_ID = 3
# Every border in UTF-8's table of well-formed sequences, both sides of it.
UTF8_BORDERS = bytes.fromhex(
    "41 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 ff"
)
IDS = st.lists(
    st.one_of(
        st.integers(0, 2),
        st.integers(FIRST_BYTE_ID, FIRST_BYTE_ID + 255),
        st.sampled_from(UTF8_BORDERS).map(lambda byte: FIRST_BYTE_ID + byte),
        st.sampled_from((28705, 259, 260)),  # one, two and four spaces
        st.integers(0, 32_100),  # the vocabulary and a little past it
    ),
    max_size=30,
)
CUTS = st.lists(st.integers(0, 30))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("checkpoint")
    shutil.copy(MIXTRAL_MODEL, directory / "tokenizer.model")
    return Tokenizer.from_dir(directory)


def streamed(detokenizer: IncrementalDetokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    """Chunks of text for `ids` pushed in slices that end at `cuts`, and what finish releases."""
    borders = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    slices = [ids[start:end] for start, end in itertools.pairwise(borders)]
    return [*(detokenizer.push(part) for part in slices), detokenizer.finish()]


@given(ids=IDS, cuts=CUTS)
@settings(max_examples=1000, deadline=None)
def test_joined_chunks_equal_the_whole_for_any_ids(
    tokenizer: Tokenizer, ids: list[int], cuts: list[int]
) -> None:
    chunks = streamed(IncrementalDetokenizer(tokenizer), ids, cuts)
    assert "".join(chunks) == tokenizer.decode(ids)


@given(ids=IDS, cuts=CUTS)
@settings(max_examples=300, deadline=None)
def test_a_completion_keeps_the_space_behind_its_prompt(
    tokenizer: Tokenizer, ids: list[int], cuts: list[int]
) -> None:
    prompt = tokenizer.encode("x", add_bos=True)
    detokenizer = IncrementalDetokenizer(tokenizer, keep_leading_space=True)
    chunks = streamed(detokenizer, ids, cuts)
    assert "x" + "".join(chunks) == tokenizer.decode([*prompt, *ids])


@given(text=st.text(), cuts=CUTS)
@settings(max_examples=300, deadline=None)
def test_text_never_shows_a_broken_character(
    tokenizer: Tokenizer, text: str, cuts: list[int]
) -> None:
    assume("\u2581" not in text)  # stands for a space
    chunks = streamed(IncrementalDetokenizer(tokenizer), tokenizer.encode(text, add_bos=True), cuts)
    shown = ""
    for chunk in chunks:
        shown += chunk
        assert text.startswith(shown)
    assert shown == text
    assert chunks[-1] == ""  # nothing is held back once a text is whole


def test_every_kind_of_ill_formed_utf8(tokenizer: Tokenizer) -> None:
    (word,) = tokenizer.encode("the", add_bos=False)
    ids = [FIRST_BYTE_ID + byte for byte in UTF8_BORDERS]
    runs = [*itertools.product(ids, repeat=2), *itertools.product(ids, repeat=3)]
    for run in runs:
        detokenizer = IncrementalDetokenizer(tokenizer)
        text = "".join(detokenizer.push([token_id]) for token_id in (*run, word))
        assert text == tokenizer.decode([*run, word])


def test_every_id_alone_equals_the_whole_decode(tokenizer: Tokenizer) -> None:
    for token_id in range(tokenizer.vocab_size + 2):
        detokenizer = IncrementalDetokenizer(tokenizer)
        text = detokenizer.push([token_id]) + detokenizer.finish()
        assert text == tokenizer.decode([token_id])


def test_a_character_shows_with_its_last_byte(tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer)
    pirate = [FIRST_BYTE_ID + byte for byte in "🦙é".encode()]
    assert [detokenizer.push([i]) for i in pirate] == ["", "", "", "🦙", "", "é"]
    assert detokenizer.finish() == ""


def test_an_unfinished_character_ends_at_the_next_piece(tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer)
    (word,) = tokenizer.encode("the", add_bos=False)
    euro = [FIRST_BYTE_ID + byte for byte in "€".encode()]
    assert detokenizer.push(euro[:2]) == ""
    assert detokenizer.push([word]) == "\ufffd\ufffd the"
    # A control token between the bytes parts them, though it shows nothing itself.
    assert detokenizer.push([*euro[:2], tokenizer.eos_id]) == "\ufffd\ufffd"
    assert detokenizer.push([euro[2]]) == "\ufffd"
    assert detokenizer.push(euro[:1]) == ""
    assert [detokenizer.finish(), detokenizer.finish()] == ["\ufffd", ""]


def test_only_the_first_space_is_dropped(tokenizer: Tokenizer) -> None:
    (word,) = tokenizer.encode("the", add_bos=False)
    chat = IncrementalDetokenizer(tokenizer)
    assert [chat.push(ids) for ids in ([1], [word], [2], [word])] == ["", "the", "", " the"]
    completion = IncrementalDetokenizer(tokenizer, keep_leading_space=True)
    assert completion.push([word]) == " the"


def test_a_negative_id_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="-1 is negative"):
        IncrementalDetokenizer(tokenizer).push([5, -1])
