"""How much one caller may ask for in a minute: buckets that fill evenly.

A full bucket is a whole minute's allowance, which may be used at once; so in any minute at most
twice that goes through, and over long times never more than it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from actors.http.errors import Overloaded

_MINUTE_S = 60.0
LIMIT_HEADERS = tuple(
    f"x-ratelimit-{part}-{what}"
    for part in ("limit", "remaining", "reset")
    for what in ("requests", "tokens")
)


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

    def headers(self, caller: str, now_s: float) -> dict[str, str]:
        """What is left to a caller, as OpenAI's `x-ratelimit-` headers; none where nothing limits.

        "reset" is when all of it will be there again.
        """
        headers: dict[str, str] = {}
        for what, per_minute, buckets in (
            ("requests", self._requests_per_minute, self._requests),
            ("tokens", self._tokens_per_minute, self._tokens),
        ):
            if per_minute is None:
                continue
            bucket = buckets.get(caller) or Bucket.full(per_minute, now_s)
            left = max(0, math.floor(bucket.at(now_s).level))
            headers[f"x-ratelimit-limit-{what}"] = str(_whole(per_minute))
            headers[f"x-ratelimit-remaining-{what}"] = str(left)
            headers[f"x-ratelimit-reset-{what}"] = duration(bucket.wait_s(per_minute, now_s))
        return headers

    def generated(self, caller: str, num_tokens: int, now_s: float) -> None:
        """So many tokens were made for a request whose prompt was taken."""
        if caller in self._tokens:
            self._tokens[caller] = self._tokens[caller].taken(num_tokens, now_s)


def duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 1.5s, 6m0s; rounded up."""
    ms = math.ceil(round(seconds * 1000, 6))
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    rest = f"{rest_ms / 1000:g}s"
    return f"{minutes}m{rest}" if minutes else rest


def _whole(per_minute: float) -> int:
    """As callers read it: of a limit shared by several ingresses one lets no part of a request."""
    return max(1, math.floor(per_minute))


def _refuse_if_early(bucket: Bucket, amount: float, now_s: float, what: str, flag: str) -> None:
    wait_s = bucket.wait_s(amount, now_s)
    if wait_s > 0:
        raise Overloaded(
            f"at most {_whole(bucket.capacity)} {what} a minute ({flag}): "
            f"try again in {wait_s:.1f} s",
            retry_after_s=wait_s,
        )
