"""One setting: a field with a heading for `windrose serve --help`."""

from __future__ import annotations

from typing import Any

from pydantic import Field


def setting(group: str, description: str, **limits: Any) -> Any:
    """A field that `windrose serve --help` shows under the heading `group`."""
    return Field(description=description, json_schema_extra={"group": group}, **limits)
