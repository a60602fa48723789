from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from configs.config_file import read_config_file
from configs.schema import WindroseConfig

SERVE_FILE = """\
http_options: {host: 0.0.0.0, port: 9000, keep_alive_timeout_s: 5}
applications:
  - name: windrose
    import_path: cluster.app:build_app
    args: {model: m, expert_actors: 2}
"""


def errors_of(settings: dict[str, Any]) -> list[tuple[Any, ...]]:
    with pytest.raises(ValidationError) as caught:
        WindroseConfig.model_validate(settings)
    return [error["loc"] for error in caught.value.errors()]


def test_only_the_model_must_be_given() -> None:
    config = WindroseConfig(model="configs/demo")
    assert (config.attention_actors, config.expert_actors, config.replicas) == (1, 0, 1)
    assert (config.host, config.port) == ("127.0.0.1", 8000)
    assert errors_of({}) == [("model",)]


def test_a_config_is_a_value() -> None:
    config = WindroseConfig(model="m")
    assert config == WindroseConfig(model="m") != WindroseConfig(model="n")
    with pytest.raises(ValidationError, match="frozen"):
        config.port = 1


def test_every_unknown_key_is_named() -> None:
    unknown = {"max_num_seq": 1, "Port": 1}
    assert errors_of({"model": "m", **unknown}) == [("max_num_seq",), ("Port",)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", ""),
        ("model", 7),
        ("served_model_name", ""),
        ("host", ""),
        ("port", 0),
        ("port", 65536),
        ("port", 80.5),
        ("port", True),
        ("port", None),
        ("attention_actors", 0),
        ("expert_actors", -1),
        ("replicas", 0),
        ("dtype", "int4"),
        ("device", "tpu"),
        ("max_model_len", 0),
        ("max_num_seqs", "many"),
        ("kv_cache_memory_bytes", -1),
        ("threads_per_actor", False),
        ("cpus_per_actor", 0),
        ("shutdown_timeout_s", -0.1),
    ],
)
def test_values_out_of_range_are_refused(key: str, value: object) -> None:
    assert errors_of({"model": "m", key: value}) == [(key,)]


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "1e999"])
def test_no_setting_takes_a_number_that_is_not_finite(text: str) -> None:
    settings = WindroseConfig(model="m").model_dump()
    numbers = [key for key, value in settings.items() if isinstance(value, float)]
    assert len(numbers) >= 5
    for key in numbers:
        for value in (text, float(text)):
            assert errors_of({"model": "m", key: value}) == [(key,)]


def test_the_model_is_named_after_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path / "tiny")
    for path in (".", "../tiny/", str(tmp_path / "tiny")):
        assert WindroseConfig(model=path).model_name == "tiny"
    assert WindroseConfig(model=".", served_model_name="mixtral").model_name == "mixtral"


def test_every_setting_has_a_heading_and_says_what_it_is() -> None:
    for field in WindroseConfig.model_fields.values():
        assert field.description
        assert isinstance(field.json_schema_extra, dict)
        assert list(field.json_schema_extra) == ["group"]


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("model: m\nport: 9000\n", {"model": "m", "port": 9000}),
        ("# nothing yet\n", {}),
        (SERVE_FILE, {"model": "m", "expert_actors": 2, "host": "0.0.0.0", "port": 9000}),
        (
            SERVE_FILE.replace("expert_actors: 2", "port: 1"),  # an argument wins
            {"model": "m", "host": "0.0.0.0", "port": 1},
        ),
        ("applications: [{import_path: x}]", {}),
    ],
)
def test_a_file_holds_settings_or_one_serve_application(
    tmp_path: Path, text: str, settings: dict[str, Any]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert read_config_file(path) == settings


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- model: m\n", "a mapping of settings is needed"),
        ("port", "a mapping of settings is needed"),
        ("1: 2", "1 is no name of a setting"),
        ("a: [1", "is not YAML"),
        ("applications: []", "exactly one application is needed"),
        (SERVE_FILE + SERVE_FILE.partition("applications:\n")[2], "exactly one application"),
        ("applications: [7]", "applications[0]: a mapping"),
        ("applications: [{args: [1]}]", "args: a mapping"),
        ("applications: [{}]\nhttp_options: 8000", "http_options: a mapping"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_config_file(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert reason in message
    assert "\n" not in message


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"model: \xff\xfe")
    with pytest.raises(ValueError, match=r"c\.yaml is not YAML"):
        read_config_file(path)
    with pytest.raises(FileNotFoundError):
        read_config_file(tmp_path / "none.yaml")
