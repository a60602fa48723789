"""Request fields that come in several shapes, each to one: texts, stop strings, prompts, biases.

All raise ValueError, which the schema turns into an error that names the field.
"""

from __future__ import annotations

from typing import Any

MAX_PROMPTS = 256
MAX_INPUTS = 2048  # of one request to be pooled, as OpenAI's
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1024
MAX_BIAS = 100.0

Prompt = str | tuple[int, ...]


def read_content(content: object) -> object:
    """Message content as one string: text parts are joined with line breaks."""
    if not isinstance(content, list):
        return content
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, dict) or "type" not in part:
            raise ValueError(f"part {i} must be an object with a 'type'")
        if part["type"] != "text":
            raise ValueError(f"part {i} has type {part['type']!r}: only 'text' is supported")
        if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
            raise ValueError(f"part {i} must have the string 'text' and nothing else")
        texts.append(part["text"])
    return "\n".join(texts)


def read_stop(stop: object) -> tuple[object, ...]:
    """One string or a list of them; what they are made of is checked after this."""
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or not all(isinstance(s, str) for s in strings):
        raise ValueError("must be a string or a list of strings")
    if len(strings) > MAX_STOP_STRINGS:
        raise ValueError(f"has {len(strings)} entries, at most {MAX_STOP_STRINGS} are allowed")
    if not all(0 < len(s) <= MAX_STOP_STRING_CHARS for s in strings):
        raise ValueError(f"each entry must have 1 to {MAX_STOP_STRING_CHARS} characters")
    return tuple(strings)


def read_inputs(given: object) -> tuple[Prompt, ...]:
    """What is to be pooled: as prompts, but more of them."""
    return read_prompts(given, MAX_INPUTS)


def read_prompts(given: object, most: int = MAX_PROMPTS) -> tuple[Prompt, ...]:
    """One or several prompts, all texts or all token ids, not yet held against a vocabulary."""
    several = isinstance(given, list) and given and isinstance(given[0], str | list)
    items: list[Any] = given if isinstance(given, list) and several else [given]
    if len(items) > most:
        raise ValueError(f"has {len(items)} prompts, at most {most} are allowed")
    kinds = {type(item) for item in items}
    if kinds == {str}:
        return tuple(map(encodable, items))
    if kinds == {list} and all({type(i) for i in ids} == {int} for ids in items):
        return tuple(map(tuple, items))
    raise ValueError(
        "must be a string, a list of strings, a list of token ids or a list of lists of token ids;"
        " no list may be empty"
    )


def read_logit_bias(bias: object) -> tuple[tuple[int, float], ...]:
    """Token ids, spelt as JSON object keys must be, with what to add to their logits."""
    if not isinstance(bias, dict):
        raise ValueError("must map token ids to numbers")
    by_id: dict[int, float] = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10) or int(key) in by_id:
            raise ValueError(f"key {key[:40]!r} is not a token id, or there twice")
        if (
            type(value) not in (int, float) or not -MAX_BIAS <= value <= MAX_BIAS
        ):  # also refuses NaN
            raise ValueError(f"the value for token {key} must be a number from -100 to 100")
        by_id[int(key)] = float(value)
    return tuple(by_id.items())


def encodable(text: str) -> str:
    """The text, if UTF-8 can spell it: JSON can also spell halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has a lone surrogate at character {error.start}") from error
    return text
