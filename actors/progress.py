"""How far the loading of weights is."""

from __future__ import annotations


class Progress:
    """Bytes of weights read so far, written by the loading thread."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self.read_bytes = 0

    def __call__(self, num_bytes: int) -> None:
        """Count one tensor."""
        self.read_bytes += num_bytes
