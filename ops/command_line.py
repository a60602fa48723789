"""What all commands share: how they are added, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Protocol, TypeAlias

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # as shells show SIGINT

Run: TypeAlias = Callable[[argparse.Namespace], int]


class AddCommand(Protocol):
    """Adds a command to the parser; `run` gets its arguments and returns the exit status."""

    def __call__(
        self, name: str, run: Run, about: str, epilog: str | None = None
    ) -> argparse.ArgumentParser:
        """Return the command's own parser."""
        ...


def failed(command: str, error: Exception, status: int = 1) -> int:
    """Say in one line why a command fails; returns its exit status."""
    print(f"windrose {command}: {error}", file=sys.stderr)
    return status
