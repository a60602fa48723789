"""How many sequences may wait for their first token, and when to come again where they may not."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from actors.http.errors import Overloaded

_REMEMBERED = 64  # of those that left the line last: their pace tells how long a place takes
_FEW = 16  # waiting, of whom nobody is sent away: the pace of so few is that of their arrivals
_TELLING = 4  # that left a longer line tell its pace
_PACE_S = 30.0  # over which it is taken: answers that begin together end together, in bursts
_MOST_TELLING = 4096
_RECENT_S = 60.0
_LONGEST_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class LineLimits:
    """Most sequences, and most tokens of their prompts, that one ingress lets wait at once.

    And for how long: nobody is let in whose first token would come later than `wait_s` from now.
    """

    sequences: int
    tokens: int | None = None
    wait_s: float = math.inf

    def excess(self, sequences: int, tokens: int, prompts: Sequence[int]) -> tuple[float, str]:
        """What must leave before `prompts` (their lengths) fit: sequences, and by which limit.

        An empty line takes any one request, however large. Tokens count as sequences of the
        line's mean length.
        """
        if not sequences:
            return 0.0, ""
        over = sequences + max(1, len(prompts)) - self.sequences
        if over > 0:
            return over, f"{sequences} requests wait, {self.sequences} may (--max-num-queued-reqs)"
        if self.tokens is None:
            return 0.0, ""
        over = tokens + max(1, sum(prompts)) - self.tokens
        if over > 0:
            mean = max(1.0, tokens / sequences)
            return over / mean, f"{tokens} tokens wait, {self.tokens} may (--max-queued-tokens)"
        return 0.0, ""


def retry_after_s(excess: float, left_s: Sequence[float], now_s: float) -> float:
    """When `excess` more will have left, by the pace of those that left at `left_s`; 1 to 60 s."""
    recent = [time_s for time_s in left_s if now_s - time_s < _RECENT_S]
    if not recent:
        return 1.0 if not left_s else _LONGEST_RETRY_S
    pace = len(recent) / max(now_s - recent[0], 1e-3)
    return min(max(excess / pace, 1.0), _LONGEST_RETRY_S)


def expected_wait_s(sequences: int, left_s: Sequence[float], now_s: float) -> float:
    """When so many will have left; 0 where it cannot be told.

    `left_s`: when others left lately, in order, since the line was last short.
    """
    if sequences <= _FEW or len(left_s) < _TELLING:
        return 0.0
    return sequences * (now_s - left_s[0]) / (len(left_s) - 1)


class WaitingLine:
    """The sequences of one ingress that have no token yet. Lives in one event loop."""

    def __init__(self, limits: LineLimits) -> None:
        self.limits = limits
        self.sequences = 0
        self.tokens = 0
        self._left_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._left_long_s: deque[float] = deque(maxlen=_MOST_TELLING)

    def refuse_if_full(self, prompts: Sequence[int], now_s: float) -> None:
        """Raises Overloaded where prompts of these lengths (none: of any) cannot wait too."""
        excess, why = self.limits.excess(self.sequences, self.tokens, prompts)
        if excess > 0:
            wait_s = retry_after_s(excess, self._left_s, now_s)
            raise Overloaded(f"{why}: try again later", retry_after_s=wait_s)
        sequences = self.sequences + max(1, len(prompts))
        wait_s = expected_wait_s(sequences, self._left_long_s, now_s)
        if wait_s > self.limits.wait_s:
            raise Overloaded(
                f"the first token would come in {wait_s:.0f} s, {self.limits.wait_s:g} s are"
                " allowed (--max-queue-time): try again later",
                retry_after_s=min(max(wait_s - self.limits.wait_s, 1.0), _LONGEST_RETRY_S),
            )

    @contextmanager
    def places(self, prompts: Sequence[int], now_s: float) -> Iterator[tuple[Place, ...]]:
        """A place for each of a request's prompts, given up at the latest at the end."""
        self.refuse_if_full(prompts, now_s)
        places = tuple(Place(self, num_tokens) for num_tokens in prompts)
        try:
            yield places
        finally:
            for place in places:
                place.give_up()


class Place:
    """One sequence's."""

    def __init__(self, line: WaitingLine, num_tokens: int) -> None:
        self._line: WaitingLine | None = line
        self._num_tokens = num_tokens
        line.sequences += 1
        line.tokens += num_tokens

    def served(self, now_s: float) -> None:
        """Its first token is there."""
        if self._line is not None:
            self._line._left_s.append(now_s)
            left_s = self._line._left_long_s
            left_s.append(now_s)
            while left_s[0] < now_s - _PACE_S:
                left_s.popleft()
            self.give_up()

    def give_up(self) -> None:
        """It ends, served or not."""
        if self._line is not None:
            self._line.sequences -= 1
            self._line.tokens -= self._num_tokens
            if self._line.sequences < _FEW:
                self._line._left_long_s.clear()
            self._line = None
