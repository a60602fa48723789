"""Where keys come from: settings and key files, or else the environment. Digests go on from here.

A stale variable in somebody's shell must not open a server that was given keys of its own, so
the environment counts only where the settings name no key of that kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import SecretStr

from actors.http.doors import KeyDigests, digest
from configs.environment import ADMIN_API_KEY, API_KEY
from configs.schema import WindroseConfig


def read_keys(config: WindroseConfig, environment: Mapping[str, str]) -> KeyDigests:
    """The digests of all keys; a variable may hold several, separated by spaces.

    Raises:
        ValueError: a key cannot be sent in a header, or a file is unreadable or has none. The
            text names the setting, the file or the variable and never repeats a key.
    """
    return KeyDigests(
        api=_digests("api_key", config.api_key, config.api_key_file, API_KEY, environment),
        admin=_digests(
            "admin_api_key",
            config.admin_api_key,
            config.admin_api_key_file,
            ADMIN_API_KEY,
            environment,
        ),
    )


def without_keys(config: WindroseConfig) -> WindroseConfig:
    """The settings as actors may have them."""
    return config.model_copy(update={"api_key": (), "admin_api_key": ()})


def _digests(
    setting: str,
    given: Sequence[SecretStr],
    path: str | None,
    variable: str,
    environment: Mapping[str, str],
) -> tuple[bytes, ...]:
    keys = _checked([key.get_secret_value() for key in given], setting)
    if path is not None:
        keys += _checked(_of_file(path, f"{setting}_file"), f"{setting}_file {path}")
    elif not given:
        keys = _checked(environment.get(variable, "").split(), variable)
    return tuple(dict.fromkeys(digest(key) for key in keys))


def _of_file(path: str, setting: str) -> list[str]:
    """One key a line; empty lines and those that begin with # are none."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"{setting} {path}: {reason}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"{setting} {path}: there is no key in it")
    return keys


def _checked(keys: list[str], where: str) -> list[str]:
    for number, key in enumerate(keys, start=1):
        if not key or not all("!" <= char <= "~" for char in key):
            raise ValueError(f"{where}: key {number} is empty or has what is not printable ASCII")
    return keys
