"""How far the fetching and the loading of weights are."""

from __future__ import annotations


class Progress:
    """Bytes of weights read so far, written by the loading thread."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self.read_bytes = 0

    def __call__(self, num_bytes: int) -> None:
        """Count one tensor."""
        self.read_bytes += num_bytes

    def fetched(self, to_come: int, came: int) -> None:
        """Count bytes of files that are fetched first; `begin` then counts anew."""
        self.total_bytes += to_come
        self.read_bytes += came

    def begin(self, total_bytes: int) -> None:
        """So many bytes are to be read from files."""
        self.read_bytes = 0
        self.total_bytes = total_bytes
