"""What Windrose's processes write to stderr: a line for each event, as text or as JSON.

Ray keeps each process's stderr in a file of its own; `windrose serve` shows it too. A record may
carry an event and its fields beside its message. JSON has them all. Text has the message, which
says what matters of them; of a request it has the fields too.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from configs.process_settings import LogFormat, LogLevel
from configs.schema import WindroseConfig

# The loggers of this project have the names of its modules.
_OWN = ("actors", "cluster", "model", "ops")
_FURTHER = "    | "  # begins the lines behind the first of a record, as of a traceback
_OWN_LINE = re.compile(
    r'\{"time": "\d{4}-|    \| |\d{4}-\d\d-\d\dT[\d:.]+Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) '
)


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How a process is to write; a plain value, so that actors can be given it."""

    format: LogFormat = "text"
    level: LogLevel = "info"

    @classmethod
    def of(cls, config: WindroseConfig) -> LogSettings:
        """Those of a deployment."""
        return cls(config.log_format, config.log_level)

    def configure(self, process: str, stream: TextIO | None = None, **where: object) -> None:
        """Have this process write so from now on, as `process`; JSON says `where` too.

        Once for each process; again where it has become something else.
        """
        handler = logging.StreamHandler(sys.stderr if stream is None else stream)
        own = {"process": process, **where}
        handler.setFormatter(JsonLines(own) if self.format == "json" else TextLines(process))
        for name in _OWN:
            logger = logging.getLogger(name)
            logger.setLevel(self.level.upper())
            logger.handlers = [handler]
            logger.propagate = False  # whatever Ray has put at the root writes it no second time


def about(event: str, **fields: object) -> dict[str, Any]:
    """The `extra` of a record that is an event."""
    return {"event": event, "fields": fields}


def is_own(line: str) -> bool:
    """Whether a line of some process's stderr was written by what `configure` made."""
    return _OWN_LINE.match(line) is not None


class JsonLines(logging.Formatter):
    """One JSON object a record, in one line of ASCII."""

    def __init__(self, process: Mapping[str, object]) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            "message": record.getMessage(),
            "logger": record.name,
            **self._process,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """Time, level, who, message; what has several lines shows by its indent."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The lines."""
        text = f"{_time(record)} {record.levelname} {self._process}: {record.getMessage()}"
        if getattr(record, "event", "") == "request":
            text += "".join(_shown(record.__dict__["fields"]))
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}"
        return text.replace("\n", f"\n{_FURTHER}")


def _shown(fields: Mapping[str, object]) -> Iterator[str]:
    """Those that the message does not have, and that are not 0."""
    for name, value in fields.items():
        if value != 0 and name not in ("method", "path", "status"):
            word = isinstance(value, str) and re.fullmatch("[!-~]+", value)
            yield f" {name}={value if word else json.dumps(value)}"


def _time(record: logging.LogRecord) -> str:
    """UTC, to the millisecond."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"
