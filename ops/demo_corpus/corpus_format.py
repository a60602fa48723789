"""The notation and the values in which the corpus of the demo checkpoint is written.

A topic is a block of lines: `?` lines are ways to ask, the `!` line is the answer, an optional `+`
line is what follows when the user wants to hear more. `{a|b|}` is a choice of one, and may stand
inside another; `<name>` is a slot that the generator fills, among them `<what>`, which stands for
any way to ask what something is.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_CHOICE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Topic:
    """Ways to ask one thing, its answer, and what to add when asked for more (or "")."""

    questions: tuple[str, ...]
    answer: str
    more: str = ""


@dataclass(frozen=True)
class Facts:
    """The tables of one language, with the sentences that ask for them and state them."""

    language: str
    what: str
    tails: str
    capitals: dict[str, str]
    unknown_countries: tuple[str, ...]
    capital_questions: tuple[str, ...]
    capital_answer: str
    capital_follow_up: str
    colours: dict[str, str]
    colour_questions: tuple[str, ...]
    colour_answer: str
    colour_follow_up: str
    days: tuple[str, ...]
    months: tuple[str, ...]
    after_questions: tuple[str, ...]
    after_answer: str
    before_questions: tuple[str, ...]
    before_answer: str
    numbers: tuple[str, ...]
    operators: tuple[str, str, str]
    sum_questions: tuple[str, ...]
    sum_answer: str
    words: tuple[str, ...]
    language_names: dict[str, str]
    word_questions: tuple[str, ...]
    word_answer: str
    name_questions: tuple[str, ...]
    name_answer: str
    own_name_questions: tuple[str, ...]
    own_name_answer: str
    more_questions: tuple[str, ...]
    no_more: str
    unknown_questions: tuple[str, ...]
    unknown_things: tuple[str, ...]
    fallback: str
    polite: tuple[str, ...]
    systems: tuple[str, ...]
    pirate_systems: tuple[str, ...]
    pirate_prefix: str


def parse_topics(text: str) -> tuple[Topic, ...]:
    """Read blocks of `?`, `!` and `+` lines; ValueError on any other line."""
    topics: list[Topic] = []
    questions: list[str] = []
    for line in text.strip().splitlines():
        mark, _, body = line.partition(" ")
        if mark == "?":
            questions.append(body)
        elif mark == "!" and questions:
            topics.append(Topic(tuple(questions), body))
            questions = []
        elif mark == "+" and topics and not questions:
            last = topics.pop()
            topics.append(Topic(last.questions, last.answer, body))
        else:
            raise ValueError(f"not a line of a topic: {line!r}")
    if questions:
        raise ValueError(f"questions without an answer: {questions!r}")
    return tuple(topics)


def expand(template: str, rng: random.Random) -> str:
    """One random reading of a template: every `{a|b}` becomes one of its parts."""
    while match := _CHOICE.search(template):
        part = rng.choice(match.group(1).split("|"))
        template = template[: match.start()] + part + template[match.end() :]
    return template
