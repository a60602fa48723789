from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from actors.http.api_keys import read_keys, without_keys
from actors.http.doors import digest
from configs.schema import WindroseConfig


def config(**settings: Any) -> WindroseConfig:
    return WindroseConfig.model_validate({"model": "m"} | settings)


def digests(*keys: str) -> tuple[bytes, ...]:
    return tuple(digest(key) for key in keys)


def test_keys_come_from_settings_files_and_else_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\n\n  from-file \nanother\r\n")
    environment = {"WINDROSE_API_KEY": "env-1  env-2", "WINDROSE_ADMIN_API_KEY": "env-admin"}
    assert read_keys(config(), {}).api == ()
    assert read_keys(config(), environment).api == digests("env-1", "env-2")
    assert read_keys(config(), environment).admin == digests("env-admin")
    given = config(api_key=["a", "b", "a"])
    assert read_keys(given, environment).api == digests("a", "b")
    assert read_keys(given, environment).admin == digests("env-admin")
    of_file = read_keys(config(api_key_file=str(file)), environment).api
    assert of_file == digests("from-file", "another")
    both = read_keys(config(admin_api_key="z", admin_api_key_file=str(file)), environment)
    assert both.admin == digests("z", "from-file", "another")


@pytest.mark.parametrize("key", ["", "two words", "tab\t", "naïve", "line\nend"])
def test_keys_that_no_header_carries_are_refused_unread(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^admin_api_key: key 2 ") as caught:
        read_keys(config(admin_api_key=["fine", key]), {})
    assert not key or key not in str(caught.value)
    file = tmp_path / "keys"
    file.write_text(f"fine\n{key}\n" if key == "two words" else "one \x01 two\n")
    with pytest.raises(ValueError, match=rf"^api_key_file {file}: key \d "):
        read_keys(config(api_key_file=str(file)), {})
    with pytest.raises(ValueError, match=r"^WINDROSE_API_KEY: key 1 "):
        read_keys(config(), {"WINDROSE_API_KEY": "n\u00f6"})


def test_files_without_keys_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# none yet\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, reason in (("empty", "no key"), ("binary", "UTF-8"), ("none", "No such file")):
        path = tmp_path / name
        with pytest.raises(ValueError, match=f"^api_key_file {path}: .*{reason}"):
            read_keys(config(api_key_file=str(path)), {})


def test_what_actors_get_holds_no_key() -> None:
    settings = config(api_key="sk-secret-1", admin_api_key="sk-secret-2", port=9)
    given = pickle.dumps((without_keys(settings), read_keys(settings, {})))
    assert b"sk-secret" not in given
    assert without_keys(settings) == config(port=9)
