"""tokenizer.json made from a SentencePiece model gives its ids, in the library that reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from model.tokenizer import Tokenizer
from model.tokenizer_json import tokenizer_json
from tests.checkpoints import write_tokenizer

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, FastTokenizer]:
    directory = tmp_path_factory.mktemp("published")
    write_tokenizer(directory, 32000)
    ours = Tokenizer.from_dir(directory)
    return ours, FastTokenizer.from_str(json.dumps(tokenizer_json(ours)))


def test_it_is_what_was_published_for_the_demo() -> None:
    made = tokenizer_json(Tokenizer.from_dir(DEMO))
    truth = json.loads((DEMO / "tokenizer.json").read_text())
    assert {key: made[key] for key in made if key != "model"} == {
        key: truth[key] for key in made if key != "model"
    }
    assert made["model"]["vocab"] == truth["model"]["vocab"]
    assert len(made["model"]["merges"]) == len(truth["model"]["merges"])


@given(text=st.text(max_size=60) | st.text("aehinrst .\n'0123", max_size=80))
def test_texts_get_the_ids_of_the_published_vocabulary(
    published: tuple[Tokenizer, FastTokenizer], text: str
) -> None:
    ours, fast = published
    if not text or any(piece in text for piece in ours.control_ids) or "\u2581" in text:
        return  # there control tokens are text, and here ids
    ids = fast.encode(text).ids
    assert ids == ours.encode(text, add_bos=True)
    assert fast.decode(ids) == ours.decode(ids) == text
