"""The corpus of the demo checkpoint: repeatable, complete, in five languages."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from ops.demo_corpus.build import conversations
from ops.demo_corpus.corpus_format import expand, parse_topics

SAMPLE = list(islice(conversations(11), 5000))


def test_a_seed_repeats_its_conversations_and_another_does_not() -> None:
    assert list(islice(conversations(11), 300)) == SAMPLE[:300]
    assert list(islice(conversations(12), 300)) != SAMPLE[:300]


def test_no_choice_and_no_slot_is_left_open() -> None:
    for conversation in SAMPLE:
        for turn in conversation.turns:
            text = conversation.system + turn.question + turn.answer
            assert not re.search(r"[<>{}|]", text), turn
            assert turn.question.strip() and turn.answer == turn.answer.strip() != ""


def test_all_languages_and_several_turns_occur() -> None:
    assert {conversation.language for conversation in SAMPLE} == {"en", "fr", "de", "es", "it"}
    assert {1, 2, 3, 5} <= {len(conversation.turns) for conversation in SAMPLE}


def test_an_answer_does_not_depend_on_chance() -> None:
    answers: dict[tuple[str, str], set[str]] = {}
    for conversation in SAMPLE:
        first = conversation.turns[0]
        if conversation.system == "" and "capital of" in first.question:
            answers.setdefault((conversation.language, first.question), set()).add(first.answer)
    assert len(answers) > 50
    assert all(len(given) == 1 for given in answers.values())


def test_expand_takes_one_part_of_every_choice() -> None:
    read = {expand("a{b|c{d|e}|}f", random.Random(seed)) for seed in range(60)}
    assert read == {"abf", "acdf", "acef", "af"}


def test_topics_are_blocks_of_questions_answer_and_more() -> None:
    (first, second) = parse_topics("? one\n? two\n! three\n+ four\n? five\n! six")
    assert (first.questions, first.answer, first.more) == (("one", "two"), "three", "four")
    assert (second.questions, second.answer, second.more) == (("five",), "six", "")


@pytest.mark.parametrize("text", ["! answer", "+ more", "? only a question", "? q\n+ more", "x y"])
def test_broken_topics_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_topics(text)
