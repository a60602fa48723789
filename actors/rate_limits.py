"""How much one caller may ask for in a minute: buckets that fill evenly.

A full bucket is a whole minute's allowance, which may be used at once; so in any minute at most
twice that goes through, and over long times never more than it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from actors.errors import Overloaded

_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """`level` of `capacity` at the time `at_s`; fills in a minute, and may be overdrawn."""

    capacity: float
    level: float
    at_s: float

    @classmethod
    def full(cls, capacity: float, now_s: float) -> Bucket:
        """As it is before anything is taken."""
        return cls(capacity, capacity, now_s)

    def at(self, now_s: float) -> Bucket:
        """Filled up to `now_s`."""
        gained = max(0.0, now_s - self.at_s) * self.capacity / _MINUTE_S
        return replace(self, level=min(self.capacity, self.level + gained), at_s=now_s)

    def wait_s(self, amount: float, now_s: float) -> float:
        """How long until `amount` may be taken; what is more than it holds waits for a full one."""
        lacking = min(amount, self.capacity) - self.at(now_s).level
        return max(0.0, lacking) * _MINUTE_S / self.capacity

    def taken(self, amount: float, now_s: float) -> Bucket:
        """Without `amount`; below 0 it must first fill up again."""
        filled = self.at(now_s)
        return replace(filled, level=filled.level - amount)


class RateLimits:
    """The buckets of all callers. Whoever has not come for a minute has full ones.

    A prompt is taken when it comes, what is generated when it is there: what a request will need
    nobody knows before. So a long answer may overdraw, and the caller's next request waits for it.
    """

    def __init__(
        self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        self._requests_per_minute = requests_per_minute
        self._tokens_per_minute = tokens_per_minute
        self._requests: dict[str, Bucket] = {}  # by caller: as many as there are keys
        self._tokens: dict[str, Bucket] = {}

    def take_request(self, caller: str, now_s: float) -> None:
        """Raises Overloaded with the time until the caller may ask again."""
        if self._requests_per_minute is None:
            return
        bucket = self._requests.get(caller) or Bucket.full(self._requests_per_minute, now_s)
        _refuse_if_early(bucket, 1, now_s, "requests", "--max-requests-per-minute")
        self._requests[caller] = bucket.taken(1, now_s)

    def take_prompt(self, caller: str, num_tokens: int, now_s: float) -> None:
        """Raises Overloaded with the time until there is room for so many tokens."""
        if self._tokens_per_minute is None:
            return
        bucket = self._tokens.get(caller) or Bucket.full(self._tokens_per_minute, now_s)
        _refuse_if_early(bucket, num_tokens, now_s, "tokens", "--max-tokens-per-minute")
        self._tokens[caller] = bucket.taken(num_tokens, now_s)

    def generated(self, caller: str, num_tokens: int, now_s: float) -> None:
        """So many tokens were made for a request whose prompt was taken."""
        if caller in self._tokens:
            self._tokens[caller] = self._tokens[caller].taken(num_tokens, now_s)


def _refuse_if_early(bucket: Bucket, amount: float, now_s: float, what: str, flag: str) -> None:
    wait_s = bucket.wait_s(amount, now_s)
    if wait_s > 0:
        raise Overloaded(
            f"at most {bucket.capacity:g} {what} a minute ({flag}): try again in {wait_s:.1f} s",
            retry_after_s=wait_s,
        )
