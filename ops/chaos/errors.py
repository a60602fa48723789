"""What ends a run of chaos before it has a result."""

from __future__ import annotations


class ChaosError(Exception):
    """The run cannot begin or go on; the text is one line for people."""
