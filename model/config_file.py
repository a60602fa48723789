"""JSON files of a checkpoint, and what is said of one that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError


class ConfigError(ValueError):
    """A checkpoint's configuration cannot be used; the text names file, key and value."""


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file's object. ConfigError if it cannot be read or is something else."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # malformed JSON or UTF-8
        raise ConfigError(f"{file}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: a JSON object is needed, found {type(data).__name__}")
    return data


def first_error(file: Path, error: ValidationError) -> ConfigError:
    """One sentence from pydantic's list: file, key, value."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return ConfigError(f"{file}: {first['msg'].removeprefix('Value error, ')}")
    key = first["loc"][0]
    if first["type"] == "missing":
        return ConfigError(f"{file}: {key} is missing")
    problem = first["msg"][0].lower() + first["msg"][1:]
    return ConfigError(f"{file}: {key} is {first['input']!r}: {problem}")
