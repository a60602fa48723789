"""Settings from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Settings of a YAML file: flat keys, or a Serve application file (its `args`, host and port).

    Raises:
        OSError: the file cannot be read.
        ValueError: not YAML, not a mapping, or a Serve file without exactly one application.
    """
    with open(path, encoding="utf-8") as file:
        try:
            data = _mapping(yaml.safe_load(file), str(path))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if "applications" not in data:
        return data
    applications = data["applications"]
    if not isinstance(applications, list) or len(applications) != 1:
        raise ValueError(f"{path}: exactly one application is needed")
    application = _mapping(applications[0], f"{path}: applications[0]")
    settings = _mapping(application.get("args"), f"{path}: args")
    for key, value in _mapping(data.get("http_options"), f"{path}: http_options").items():
        if key in ("host", "port"):
            settings.setdefault(key, value)
    return settings


def _mapping(value: object, where: str) -> dict[str, Any]:
    """`value` as settings; nothing at all is no settings."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a mapping of settings is needed")
    if unnamed := [key for key in value if not isinstance(key, str)]:
        raise ValueError(f"{where}: {unnamed[0]!r} is no name of a setting")
    return value
