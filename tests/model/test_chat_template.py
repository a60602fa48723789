"""Chat templates against transformers' own rendering, and which format a checkpoint gets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from model.chat_format import ChatFormatError, ChatMessage
from model.chat_template import InstructFormat, JinjaFormat, NoChatTemplate, NoFormat, chat_format
from model.config_file import ConfigError
from model.tokenizer import Tokenizer

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"
SNIPPETS = (
    "What is a mixture of experts?", "Où ? Là-bas, « peut-être ».", " one before", "two after  ",
    "a  b", "\tindented\n\nlines\n", "日本語 😀", "e\u0301 \u200b", "[INST] [/INST]", "<unk>",
    "x</s>y", "<s> </s> ", 'quotes " and \\ and <html> & more', "",
)  # fmt: skip
# Turns in words of their own, with what templates use: filters, tests, loop controls, namespaces.
TAGGED = """
{%- set ns = namespace(seen=0) -%}
{{ bos_token }}
{% for m in messages %}
    {% if m.role == 'system' %}{% continue %}{% endif %}
    {% set ns.seen = ns.seen + 1 %}
{{ '### ' ~ m['role'] | upper ~ ' ' ~ ns.seen }}
{{ m['content'] | tojson }}{{ eos_token if m['role'] == 'assistant' }}
{% endfor %}
{% if add_generation_prompt %}{{ 'ANSWER:' }}{% endif %}
{% if tools is not none or documents is not none %}{{ raise_exception('no') }}{% endif %}
"""
# The Instruct format as published at different times: with and without spaces, system or not.
INSTRUCT = """
{%- if messages[0].role == 'system' -%}
    {%- set lead = messages[0].content + '\n\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}
    {%- set lead = '' -%}{%- set rest = messages -%}
{%- endif -%}
{{- bos_token -}}
{%- for m in rest -%}
    {%- if (m.role == 'user') != (loop.index0 is even) -%}
        {{- raise_exception('turns must alternate') -}}
    {%- endif -%}
    {%- if m.role == 'user' -%}
        {{- SPACE + '[INST] ' + (lead if loop.first else '') + m.content + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + m.content + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""
SPACED, UNSPACED = INSTRUCT.replace("SPACE", "' '"), INSTRUCT.replace("SPACE", "''")
NO_SYSTEM = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}
{{- '[INST] ' + m.content + ' [/INST]' -}}
{% elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token -}}
{% else %}{{- raise_exception('Only user and assistant speak here') -}}
{% endif %}{% endfor %}"""


def talk(*contents: str, system: str | None = None) -> list[ChatMessage]:
    first = [] if system is None else [ChatMessage("system", system)]
    roles = ("user", "assistant")
    return first + [ChatMessage(roles[i % 2], text) for i, text in enumerate(contents)]


TALKS = [
    *(talk(text) for text in SNIPPETS),
    talk(*SNIPPETS[:3]),
    talk(*SNIPPETS[3:8]),
    talk("a", *SNIPPETS[8:12]),
    talk("a", "b", "c", system="Be brief."),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_dir(DEMO)


def directory_with(path: Path, prefix_all: bool = True, **settings: Any) -> Path:
    """The demo's tokenizer, its prefix space before each text between control tokens or not."""
    path.mkdir(exist_ok=True)
    shutil.copy(DEMO / "tokenizer.model", path)
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    data = json.loads((DEMO / "tokenizer.json").read_text())
    if not prefix_all:
        data["normalizer"] = None
        data["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False,
        }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(data))
    return path


def hugging_face_ids(path: Path, template: str, messages: list[ChatMessage]) -> list[int]:
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_file=str(path / "tokenizer.json"),
        bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip
    ids: list[int] = fast.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages],
        chat_template=template, add_generation_prompt=True, return_dict=False,
    )  # fmt: skip
    return ids


# As models are trained with: what the assistant says is marked.
MARKED = TAGGED.replace(
    "{{ m['content'] | tojson }}",
    "{% generation %}{{ m['content'] | tojson }}{% endgeneration %}",
)


@pytest.mark.parametrize("prefix_all", [True, False])
@pytest.mark.parametrize(
    "template", [TAGGED, MARKED, NO_SYSTEM], ids=["tagged", "marked", "no-system"]
)
def test_templates_say_what_they_say_in_transformers(
    tmp_path: Path, tokenizer: Tokenizer, template: str, prefix_all: bool
) -> None:
    path = directory_with(tmp_path / "model", prefix_all, chat_template=template)
    ours = chat_format(tokenizer, path)
    assert isinstance(ours, JinjaFormat)
    spoken = TALKS if template != NO_SYSTEM else TALKS[:-1]
    for messages in spoken:
        assert ours.render(messages) == hugging_face_ids(path, template, messages), messages


@pytest.mark.parametrize("template", [SPACED, UNSPACED], ids=["spaced", "unspaced"])
def test_the_built_in_format_is_recognized_and_says_what_templates_say(
    tmp_path: Path, tokenizer: Tokenizer, template: str
) -> None:
    path = directory_with(tmp_path / "model", prefix_all=template == UNSPACED)
    (path / "chat_template.jinja").write_text(template)
    ours = chat_format(tokenizer, path)
    assert isinstance(ours, InstructFormat)
    for messages in TALKS:
        if not any("<" in m.content for m in messages):  # what clients spell is text here
            ids = ours.render(messages)
            if template == SPACED or all(m.content for m in messages):
                assert ids == hugging_face_ids(path, template, messages), messages


def test_the_demo_chats_in_the_built_in_format(tokenizer: Tokenizer) -> None:
    assert isinstance(chat_format(tokenizer, DEMO), InstructFormat)


def test_where_a_template_is_looked_for(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = directory_with(tmp_path / "model")
    assert isinstance(chat_format(tokenizer, path), NoFormat)
    named = [{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": "two"}]
    directory_with(path, chat_template=named)
    assert chat_format(tokenizer, path).render(talk("a")) == tokenizer.encode("two", add_bos=False)
    (path / "chat_template.jinja").write_text("three")
    three = tokenizer.encode("three", add_bos=False)
    assert chat_format(tokenizer, path).render(talk("a")) == three
    own = tmp_path / "own.jinja"
    own.write_text("four")
    four = tokenizer.encode("four", add_bos=False)
    assert chat_format(tokenizer, path, str(own)).render(talk("a")) == four
    for name in ("mixtral-instruct", "mistral-v1"):
        assert isinstance(chat_format(tokenizer, path, name), InstructFormat)


def test_a_base_model_says_that_it_does_not_chat(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = directory_with(tmp_path / "Mistral-7B-v0.1")
    with pytest.raises(NoChatTemplate) as refusal:
        chat_format(tokenizer, path).render(talk("a"))
    for part in ("no chat template", "Mistral-7B-v0.1", "/v1/completions", "--chat-template"):
        assert part in str(refusal.value)


CHAT_ML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}
{% endfor %}"""
ADDED = {
    "tokenizer_config.json": {
        "chat_template": CHAT_ML,
        "added_tokens_decoder": {"0": {"content": "<unk>"}, "2048": {"content": "<|im_start|>"}},
    },
    "tokenizer.json": {"added_tokens": [{"id": 2048, "content": "<|im_start|>"}]},
    "added_tokens.json": {"<|im_start|>": 2048},
}


@pytest.mark.parametrize("file", ADDED)
def test_a_template_that_writes_tokens_only_hugging_face_knows_makes_no_chats(
    tmp_path: Path, tokenizer: Tokenizer, file: str
) -> None:
    path = directory_with(tmp_path / "model")
    (path / "tokenizer.json").unlink()
    (path / "chat_template.jinja").write_text(CHAT_ML)
    (path / file).write_text(json.dumps(ADDED[file]))
    ours = chat_format(tokenizer, path)
    assert isinstance(ours, NoFormat)
    with pytest.raises(NoChatTemplate, match=r"<\|im_start\|>.*--chat-template"):
        ours.render(talk("a"))
    (path / "chat_template.jinja").write_text(TAGGED)  # which writes none of them
    assert isinstance(chat_format(tokenizer, path), JinjaFormat)
    assert isinstance(chat_format(tokenizer, path, "mixtral-instruct"), InstructFormat)


def test_added_tokens_that_are_none_are_refused_by_file(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = directory_with(tmp_path / "model", chat_template="a", added_tokens_decoder={"x": 1})
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json: its added tokens"):
        chat_format(tokenizer, path)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (NO_SYSTEM, "Only user and assistant speak here"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ messages[9].content.x }}", "no element 9"),
        ("{{ 1 // 0 }}", "zero"),
        ("", "nothing"),
    ],
)
def test_a_template_that_raises_is_the_requests_fault(
    tmp_path: Path, tokenizer: Tokenizer, template: str, words: str
) -> None:
    path = directory_with(tmp_path / "model", chat_template=template)
    with pytest.raises(ChatFormatError, match=words):
        chat_format(tokenizer, path).render(talk("a", system="b"))


def test_what_cannot_be_a_template_is_refused_by_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = directory_with(tmp_path / "model", chat_template="{% if %}")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json: the chat template is not val"):
        chat_format(tokenizer, path)
    directory_with(path, chat_template=7)
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json: chat_template is int"):
        chat_format(tokenizer, path)
    with pytest.raises(ConfigError, match=r"absent cannot be read.*mixtral-instruct and mistral"):
        chat_format(tokenizer, path, str(tmp_path / "absent"))
