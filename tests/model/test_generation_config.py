from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from model.config_file import ConfigError
from model.generation_config import GenerationDefaults


def read(directory: Path, values: Any) -> GenerationDefaults:
    (directory / "generation_config.json").write_text(json.dumps(values))
    return GenerationDefaults.from_dir(directory)


def test_what_the_file_says_and_openais_defaults_for_the_rest(tmp_path: Path) -> None:
    assert GenerationDefaults.from_dir(tmp_path) == GenerationDefaults()
    told = read(tmp_path, {"temperature": 0.6, "top_p": None, "do_sample": True, "eos_token_id": 2})
    assert told == GenerationDefaults(temperature=0.6)
    assert (told.top_p, told.top_k, told.max_new_tokens) == (1.0, 0, None)


def test_a_file_that_transformers_wrote(tmp_path: Path) -> None:
    GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1,
        max_new_tokens=9, eos_token_id=[2, 5],
    ).save_pretrained(tmp_path)  # fmt: skip
    assert GenerationDefaults.from_dir(tmp_path) == GenerationDefaults(
        temperature=0.7, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1, max_new_tokens=9
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"max_new_tokens": "8"}, "max_new_tokens is '8'"),
        ({"min_p": True}, "min_p is True"),
        ([], "object is needed"),
    ],
)
def test_a_bad_value_is_refused_by_file_and_key(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read(tmp_path, values)
    assert str(tmp_path / "generation_config.json") in str(refusal.value)
    assert message in str(refusal.value)
