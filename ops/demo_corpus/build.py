"""A seeded, endless stream of short conversations for the demo checkpoint.

Every conversation is in one language and has one to eight turns, each about a topic, a fact, a
name or something unknown. Questions are worded at random and made a little untidy, as people type.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ops.demo_corpus import (
    facts_de,
    facts_en,
    facts_es,
    facts_fr,
    facts_it,
    topics_de,
    topics_en,
    topics_es,
    topics_fr,
    topics_it,
)
from ops.demo_corpus.corpus_format import Facts, Topic, expand, parse_topics

_NAMES = """
    Anna Paul Marie Hans Carlos Giulia Emma Leo Sofia Luca Tom Lena Pierre Jonas Maria Marco Eva
    Jan Nina Hugo Clara Felix Laura Peter Julia Pablo Chiara Max Alice John Sarah David
"""
_SYLLABLES = "ka lo mi ra ne to sa vi du be ri no la fe gu zo ta li mo"
NAMES = tuple(_NAMES.split())
SYLLABLES = tuple(_SYLLABLES.split())
SYMBOLS = (("+", "+"), ("-", "\u2212"), ("*", "x", "\u00d7"))


@dataclass(frozen=True)
class Turn:
    """What the user says and what the model should answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Turns in order, under a system text or ""."""

    language: str
    system: str
    turns: tuple[Turn, ...]


class Speaker:
    """Makes turns in one language from its topics and tables."""

    def __init__(self, facts: Facts, topics: tuple[Topic, ...], foreign: dict[str, Facts]) -> None:
        self.facts = facts
        self.topics = topics
        self.foreign = foreign

    def topic(self, index: int, rng: random.Random) -> list[Turn]:
        """A topic, sometimes followed by a wish to hear more about it."""
        topic = self.topics[index]
        question = self._worded(rng.choice(topic.questions), rng)
        turns = [Turn(self._untidy(question, rng), topic.answer)]
        if rng.random() < (0.35 if topic.more else 0.05):
            more = self._untidy(expand(rng.choice(self.facts.more_questions), rng), rng)
            turns.append(Turn(more, topic.more or self.facts.no_more))
        return turns

    def capital(self, rng: random.Random) -> list[Turn]:
        """Capitals of countries in the table, and now and then of one that is not."""
        return self._chain(
            self.facts.capitals,
            self.facts.capital_questions,
            self.facts.capital_follow_up,
            ("<country>", "<city>"),
            self.facts.capital_answer,
            rng,
            strangers=self.facts.unknown_countries,
        )

    def colour(self, rng: random.Random) -> list[Turn]:
        """Colours of things."""
        return self._chain(
            self.facts.colours,
            self.facts.colour_questions,
            self.facts.colour_follow_up,
            ("<thing>", "<colour>"),
            self.facts.colour_answer,
            rng,
        )

    def neighbour(self, rng: random.Random) -> list[Turn]:
        """The day or month before or after another."""
        f = self.facts
        cycle = rng.choice((f.days, f.days, f.months))
        at = rng.randrange(len(cycle))
        after = rng.random() < 0.6
        questions = f.after_questions if after else f.before_questions
        answer = f.after_answer if after else f.before_answer
        other = cycle[(at + (1 if after else -1)) % len(cycle)]
        question = expand(rng.choice(questions), rng).replace("<x>", cycle[at])
        answer = answer.replace("<x>", cycle[at]).replace("<y>", other)
        return [Turn(self._untidy(question, rng, typos=False), answer)]

    def sum(self, rng: random.Random) -> list[Turn]:
        """A sum, difference or product, which so small a model had better not try."""
        f = self.facts
        kind = rng.randrange(3)
        question = expand(rng.choice(f.sum_questions), rng)
        largest = rng.choice((10, 10, 100, 1000))
        a, b = rng.randint(0, largest), rng.randint(0, largest)
        sign = rng.choice((f.operators[kind], f.operators[kind], rng.choice(SYMBOLS[kind])))
        gap = rng.choice((" ", " ", "")) if len(sign) == 1 else " "
        left, right = str(a), str(b)
        if len(sign) > 1 and max(a, b) < len(f.numbers) and rng.random() < 0.5:
            left, right = f.numbers[a], f.numbers[b]
        question = question.replace("<sum>", left + gap + sign + gap + right)
        return [Turn(self._untidy(question, rng, typos=False), f.sum_answer)]

    def word(self, rng: random.Random) -> list[Turn]:
        """The word for something in another of the five languages."""
        f = self.facts
        code, name = rng.choice(list(f.language_names.items()))
        at = rng.randrange(len(f.words))
        question = expand(rng.choice(f.word_questions), rng)
        answer = f.word_answer.replace("<foreign>", self.foreign[code].words[at])
        filled = [
            text.replace("<word>", f.words[at]).replace("<language>", name)
            for text in (question, answer)
        ]
        return [Turn(self._untidy(filled[0], rng, typos=False), filled[1])]

    def name(self, rng: random.Random) -> list[Turn]:
        """The user's name, and sometimes the wish to hear it again, which is too much to ask."""
        f = self.facts
        name = rng.choice(NAMES)
        if rng.random() < 0.5:
            name = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3))).title()
        told = expand(rng.choice(f.name_questions), rng).replace("<name>", name)
        turns = [Turn(told, f.name_answer)]
        if rng.random() < 0.5:
            asked = self._untidy(expand(rng.choice(f.own_name_questions), rng), rng)
            turns.append(Turn(asked, f.own_name_answer))
        return turns

    def unknown(self, rng: random.Random) -> list[Turn]:
        """Something the model has no answer to, which it should say."""
        f = self.facts
        thing = rng.choice(f.unknown_things)
        if rng.random() < 0.15:
            thing = " ".join(
                "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 3)))
                for _ in range(rng.randint(1, 3))
            )
        question = self._worded(rng.choice(f.unknown_questions), rng).replace("<thing>", thing)
        return [Turn(self._untidy(question, rng), f.fallback)]

    def _chain(
        self,
        table: dict[str, str],
        questions: tuple[str, ...],
        follow_up: str,
        slots: tuple[str, str],
        statement: str,
        rng: random.Random,
        strangers: tuple[str, ...] = (),
    ) -> list[Turn]:
        turns: list[Turn] = []
        form = rng.choice(questions)
        while not turns or rng.random() < 0.3:
            if strangers and rng.random() < 0.15:
                key, answer = rng.choice(strangers), self.facts.fallback
            else:
                key, value = rng.choice(list(table.items()))
                answer = statement.replace(slots[0], key).replace(slots[1], value)
                answer = answer.replace(slots[0].title(), key[0].upper() + key[1:])
            asked = expand(form, rng).replace(slots[0], key)
            turns.append(Turn(self._untidy(asked, rng, typos=False), answer))
            form = follow_up
        return turns

    def _worded(self, template: str, rng: random.Random) -> str:
        """A reading of a template in which <what> becomes one way to ask what something is."""
        text = expand(template, rng)
        if "<what>" in text:
            text = text.replace("<what>", expand(self.facts.what, rng)).strip()
            if rng.random() < 0.2:
                text = (
                    text.rstrip(" .?") + expand(self.facts.tails, rng) + rng.choice(("?", "?", ""))
                )
        return text[0].upper() + text[1:]

    def _untidy(self, text: str, rng: random.Random, typos: bool = True) -> str:
        if rng.random() < 0.12:
            lead = rng.choice(self.facts.polite)
            text = lead + (text[0].lower() + text[1:] if rng.random() < 0.6 else text)
        if rng.random() < 0.15:
            text = text.rstrip(" .?!")
        if rng.random() < 0.2:
            text = text.lower()
        if rng.random() < 0.06:
            plain = unicodedata.normalize("NFD", text)
            text = unicodedata.normalize(
                "NFC", "".join(c for c in plain if c not in "\u0300\u0301")
            )
        if typos and len(text) > 8 and rng.random() < 0.08:
            at = rng.randrange(1, len(text) - 2)
            if text[at : at + 2].isalpha():
                swapped = text[at + 1] + text[at]
                text = text[:at] + rng.choice((swapped, text[at])) + text[at + 2 :]
        return text


_KINDS = ("topic", "unknown", "capital", "colour", "neighbour", "sum", "word", "name")
_WEIGHTS = (52, 14, 9, 6, 6, 4, 6, 3)
# What a newcomer says first stands first in the lists of topics, and is more frequent here too.
_OPENERS = 20


def _speakers() -> tuple[Speaker, ...]:
    written = (
        (facts_en.FACTS, topics_en.TOPICS),
        (facts_fr.FACTS, topics_fr.TOPICS),
        (facts_de.FACTS, topics_de.TOPICS),
        (facts_es.FACTS, topics_es.TOPICS),
        (facts_it.FACTS, topics_it.TOPICS),
    )
    tables = {facts.language: facts for facts, _ in written}
    return tuple(Speaker(facts, parse_topics(text), tables) for facts, text in written)


def conversations(seed: int) -> Iterator[Conversation]:
    """Endless conversations, the same for the same seed; English is twice as frequent."""
    rng = random.Random(seed)
    speakers = _speakers()
    while True:
        yield _conversation(rng.choices(speakers, weights=(2, 1, 1, 1, 1))[0], rng)


def _conversation(speaker: Speaker, rng: random.Random) -> Conversation:
    facts = speaker.facts
    wanted = rng.choices((1, 2, 3, rng.randint(4, 8)), weights=(50, 25, 15, 10))[0]
    turns: list[Turn] = []
    index = rng.randrange(len(speaker.topics))
    if rng.random() < 0.25:
        index = rng.randrange(_OPENERS)
        turns += speaker.topic(index, rng)
    while len(turns) < wanted:
        kind = rng.choices(_KINDS, weights=_WEIGHTS)[0]
        if kind == "topic":
            turns += speaker.topic(index % len(speaker.topics), rng)
            # Neighbours in the list are about the same matter, as in a real talk.
            index = index + 1 if rng.random() < 0.5 else rng.randrange(len(speaker.topics))
        else:
            make = getattr(speaker, kind)
            turns += make(rng)
    system = ""
    if rng.random() < 0.1:
        system = expand(rng.choice(facts.systems), rng)
    elif rng.random() < 0.07:
        system = expand(rng.choice(facts.pirate_systems), rng)
        turns = [_as_pirate(turn, facts.pirate_prefix) for turn in turns]
    return Conversation(facts.language, system, tuple(turns))


def _as_pirate(turn: Turn, prefix: str) -> Turn:
    # Answers of the pirate topics open like the prefix already.
    if turn.answer.startswith(prefix[:4]):
        return turn
    return replace(turn, answer=prefix + turn.answer)
