"""When the tokens of one burst arrived, and the rates and latencies that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple


class Arrival(NamedTuple):
    """Tokens of one stream that became known together."""

    time_s: float  # since the burst was submitted
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Burst:
    """Requests submitted at one moment: each stream's arrivals in order, none where it failed."""

    streams: tuple[tuple[Arrival, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Output tokens of all streams."""
        return sum(arrival.num_tokens for stream in self.streams for arrival in stream)

    @property
    def output_tok_s(self) -> float:
        """Output tokens per second from submission to the last token, prefill included."""
        end_s = max((stream[-1].time_s for stream in self.streams if stream), default=0.0)
        return self.num_tokens / end_s if end_s else 0.0

    @property
    def decode_tok_s(self) -> float | None:
        """Output tokens per second once every stream has its first; None if none come later."""
        begin_s = max(self.first_token_s(), default=0.0)
        later = [a for stream in self.streams for a in stream if a.time_s > begin_s]
        if not later:
            return None
        duration_s = max(arrival.time_s for arrival in later) - begin_s
        return sum(arrival.num_tokens for arrival in later) / duration_s

    def first_token_s(self) -> list[float]:
        """Time to first token of every stream that has one."""
        return [stream[0].time_s for stream in self.streams if stream]

    def last_token_s(self) -> list[float]:
        """Time to the last token of every stream that has one."""
        return [stream[-1].time_s for stream in self.streams if stream]

    def gaps_s(self) -> list[float]:
        """Times between successive arrivals within a stream, all streams together.

        Tokens that arrive together are one arrival: what its reader sees is one gap.
        """
        return [b.time_s - a.time_s for stream in self.streams for a, b in pairwise(stream)]
