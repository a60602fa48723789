"""Which chat format a checkpoint has: a built-in one, its own Jinja template, or none.

A template is run as Hugging Face's apply_chat_template runs it, sandboxed, and its text is
tokenized as Hugging Face's tokenizer does, with control tokens where the text spells them: also
where a client does. The built-in format tokenizes turn by turn, and what clients write is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from configs.model_settings import BUILT_IN_FORMATS
from model.added_tokens import unknown_tokens
from model.chat_format import ChatFormatError, ChatMessage, render_instruct
from model.config_file import ConfigError, read_object
from model.tokenizer import TOKENIZER_FILE, Tokenizer

_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_TEMPLATE_FILE: Final = "chat_template.jinja"  # as transformers 5 saves it; goes before the key
# What tells whether a template is the built-in format: turns, a system text, white space.
_PROBES: Final = (
    (("user", "a"),),
    (("user", " a\nb "), ("assistant", "c d"), ("user", "e")),
    (("system", "x y"), ("user", "a"), ("assistant", " c"), ("user", "e")),
)


class NoChatTemplate(ChatFormatError):
    """The model has no chat format; the text says where one was looked for and what to do."""


class ChatFormat(Protocol):
    """From a conversation to prompt token ids."""

    def render(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The ids to answer. ChatFormatError for what the format cannot express."""
        ...


class InstructFormat:
    """The built-in format, of Mixtral Instruct and Mistral Instruct 0.1 and 0.2."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def render(self, messages: Sequence[ChatMessage]) -> list[int]:
        """See render_instruct."""
        return render_instruct(self._tokenizer, messages)


class JinjaFormat:
    """A template's text, tokenized."""

    def __init__(
        self, tokenizer: Tokenizer, template: str, where: str, *, prefix_all: bool = True
    ) -> None:
        """`where` is for errors. `prefix_all`: each text between control tokens gets
        SentencePiece's prefix space ("legacy"), not only one that begins the whole.

        Raises:
            ConfigError: the template is not valid Jinja.
        """
        self._tokenizer = tokenizer
        self._where = where
        self._prefix_all = prefix_all
        ids = tokenizer.control_ids
        self._control_ids = ids
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(ids, key=len)[::-1])) + ")")
        try:
            self._template = _compile(template)
        except TemplateError as error:
            raise ConfigError(f"{where}: the chat template is not valid: {error}") from error

    def text(self, messages: Sequence[ChatMessage]) -> str:
        """What the template makes of them. ChatFormatError where it raises, with its words."""
        pieces = {i: piece for piece, i in self._control_ids.items()}
        try:
            return self._template.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                bos_token=pieces[self._tokenizer.bos_id],
                eos_token=pieces[self._tokenizer.eos_id],
                unk_token=pieces.get(self._tokenizer.unk_id, ""),
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise ChatFormatError(f"the chat template refuses them: {error}") from error

    def render(self, messages: Sequence[ChatMessage]) -> list[int]:
        """ChatFormatError where the template raises, and for what cannot be tokenized."""
        ids: list[int] = []
        for index, part in enumerate(self._split.split(self.text(messages))):
            if part in self._control_ids:
                ids.append(self._control_ids[part])
            elif part:
                prefixed = self._prefix_all or index == 0
                try:
                    ids += self._tokenizer.encode(part, add_bos=False, prefix=prefixed)
                except ValueError as error:
                    raise ChatFormatError(str(error)) from error
        if not ids:
            raise ChatFormatError("the chat template makes nothing of them")
        return ids


class NoFormat:
    """A base model's, or one whose template cannot be followed here: completions only."""

    def __init__(self, why: str) -> None:
        self._why = why

    @classmethod
    def of_base_model(cls, directory: Path) -> NoFormat:
        """There is no template in the checkpoint's directory."""
        return cls(
            f"this model has no chat template: {directory.name} has neither a "
            f"{_TEMPLATE_FILE} nor a chat_template in {_TOKENIZER_CONFIG}. Use /v1/completions, or "
            "start the server with --chat-template FILE, or, if it is an Instruct model, with "
            f"--chat-template {BUILT_IN_FORMATS[-1]}"
        )

    def render(self, messages: Sequence[ChatMessage]) -> NoReturn:
        """Always NoChatTemplate."""
        raise NoChatTemplate(self._why)


def chat_format(
    tokenizer: Tokenizer, directory: str | Path, chosen: str | None = None
) -> ChatFormat:
    """The format of the checkpoint in `directory`; `chosen` is a built-in name or a template file.

    A checkpoint's own template that says what the built-in format says is taken for it.

    Raises:
        ConfigError: a file that cannot be read, or a template that is not valid.
    """
    directory = Path(directory)
    if chosen in BUILT_IN_FORMATS:
        return InstructFormat(tokenizer)
    settings = _settings(directory)
    if chosen is not None:
        template, where = _read(Path(chosen)), chosen
    elif (file := directory / _TEMPLATE_FILE).exists():
        template, where = _read(file), str(file)
    else:
        where = str(directory / _TOKENIZER_CONFIG)
        found = _own_template(settings, where)
        if found is None:
            return NoFormat.of_base_model(directory)
        template = found
    if unknown := sorted(one for one in unknown_tokens(directory, tokenizer) if one in template):
        return NoFormat(
            f"the chat template of this model ({where}) writes {unknown[0]!r}, a token that its "
            f"tokenizer has beside those of {TOKENIZER_FILE}: such tokens are not supported, and "
            "as text the model would not know it. Use /v1/completions with token ids, or start "
            "the server with another --chat-template"
        )
    jinja = JinjaFormat(tokenizer, template, where, prefix_all=_prefixes_all(directory, settings))
    if chosen is None and _says_instruct(jinja, tokenizer):
        return InstructFormat(tokenizer)
    return jinja


def _says_instruct(jinja: JinjaFormat, tokenizer: Tokenizer) -> bool:
    """Whether a template makes of all probes what the built-in format does.

    Spaces right behind a control token do not count: published revisions of one template differ
    in them, to suit tokenizers that put a prefix space there and those that do not.
    """
    if "[INST]" in tokenizer.control_ids:
        return False  # a token there, where the built-in format has text
    pieces = {i: piece for piece, i in tokenizer.control_ids.items()}
    bos, eos = pieces[tokenizer.bos_id], pieces[tokenizer.eos_id]
    spaces = re.compile(f"({re.escape(bos)}|{re.escape(eos)}) +")
    try:
        for probe in _PROBES:
            text = jinja.text([ChatMessage(role, content) for role, content in probe])
            if spaces.sub(r"\1", text) != _instruct_text(probe, bos, eos):
                return False
    except ChatFormatError:
        return False
    return True


def _instruct_text(turns: Sequence[tuple[str, str]], bos: str, eos: str) -> str:
    """The built-in format, spelled out."""
    text, lead = bos, ""
    for role, content in turns:
        if role == "system":
            lead = f"{content}\n\n"
        elif role == "user":
            text, lead = f"{text}[INST] {lead}{content} [/INST]", ""
        else:
            text = f"{text} {content}{eos}"
    return text


def _settings(directory: Path) -> dict[str, Any]:
    file = directory / _TOKENIZER_CONFIG
    return read_object(file) if file.exists() else {}


def _own_template(settings: dict[str, Any], where: str) -> str | None:
    """`chat_template`: a text, or a list of named ones of which "default" counts."""
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise ConfigError(f"{where}: chat_template is {type(found).__name__}; a text is needed")
    return found


def _prefixes_all(directory: Path, settings: dict[str, Any]) -> bool:
    """Whether each text between control tokens gets a prefix space, or only the first one.

    tokenizer.json knows best; else `legacy` says, which is true where it is not given.
    """
    file = directory / "tokenizer.json"
    if file.exists():
        pre = read_object(file).get("pre_tokenizer")
        if isinstance(pre, dict) and pre.get("type") == "Metaspace":
            return bool(pre.get("prepend_scheme", "always") == "always")
        return True
    return settings.get("legacy") is not False


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = " and ".join(BUILT_IN_FORMATS)
        raise ConfigError(
            f"chat_template: {file} cannot be read: {error}; the built-in formats are {known}"
        ) from error


class _Generation(Extension):
    """Hugging Face's {% generation %} ... {% endgeneration %}: what is within, for our purposes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[Node]:
        """Called by Jinja at the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Not Jinja's own, which escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
