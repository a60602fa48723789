from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.http.errors import Overloaded
from actors.http.rate_limits import Bucket, RateLimits, duration

# Quarters of seconds, so that sums of them are exact.
GAPS_S = st.integers(0, 200).map(lambda quarters: quarters / 4)


def test_a_bucket_by_hand() -> None:
    bucket = Bucket.full(60, now_s=100.0).taken(60, 100.0)
    assert bucket.level == 0
    assert bucket.wait_s(1, 100.0) == 1.0
    assert bucket.at(110.0).level == 10
    assert bucket.wait_s(10, 110.0) == 0
    assert bucket.wait_s(1000, 110.0) == 50.0  # more than it holds: until it is full
    assert bucket.taken(30, 110.0).level == -20
    assert bucket.at(1e6).level == 60
    assert bucket.at(50.0).level == 0  # a clock that goes back gives nothing


@given(st.integers(1, 50), st.lists(st.tuples(GAPS_S, st.integers(1, 60)), max_size=60))
def test_nothing_over_the_rate_and_nothing_kept_waiting_too_long(
    capacity: int, asked: list[tuple[float, int]]
) -> None:
    now_s, began_s = 1000.0, 1000.0
    bucket, taken = Bucket.full(capacity, now_s), 0
    for gap_s, amount in asked:
        now_s += gap_s
        wait_s = bucket.wait_s(amount, now_s)
        assert 0 <= wait_s <= 60.0 * (2 if bucket.level < 0 else 1) + 60.0 * 60 / capacity
        if wait_s > 0:
            assert bucket.wait_s(amount, now_s + wait_s * 0.99) > 0
            assert bucket.wait_s(amount, now_s + wait_s) == pytest.approx(0, abs=1e-6)
            continue
        bucket = bucket.taken(amount, now_s)
        taken += amount
        # What is larger than the bucket may overdraw it once, and is paid off before the next.
        assert taken <= capacity * (1 + (now_s - began_s) / 60) + max(0, amount - capacity) + 1e-6


def test_callers_have_buckets_of_their_own_and_are_told_when_to_come() -> None:
    rates = RateLimits(requests_per_minute=2)
    for caller in ("a", "b"):
        rates.take_request(caller, 0.0)
        rates.take_request(caller, 3.0)
        with pytest.raises(Overloaded) as caught:
            rates.take_request(caller, 6.0)
        assert caught.value.headers()["retry-after"] == "24"
        assert "2 requests a minute (--max-requests-per-minute)" in caught.value.message
        with pytest.raises(Overloaded):
            rates.take_request(caller, 6.0 + 23.9)  # being refused has cost nothing
        rates.take_request(caller, 6.0 + 24.0)


def test_generated_tokens_are_paid_by_the_next_request() -> None:
    rates = RateLimits(tokens_per_minute=600)
    rates.take_prompt("a", 100, 0.0)
    rates.generated("a", 800, 0.0)  # 300 overdrawn
    with pytest.raises(Overloaded) as caught:
        rates.take_prompt("a", 50, 5.0)
    assert caught.value.retry_after_s == pytest.approx(30.0)  # 250 below 0, 50 needed, 10 a second
    assert "--max-tokens-per-minute" in caught.value.message
    rates.take_prompt("b", 600, 5.0)
    rates.take_prompt("a", 50, 35.0)
    rates.take_prompt("c", 9000, 5.0)  # larger than the bucket: let in where it is full
    with pytest.raises(Overloaded):
        rates.take_prompt("c", 1, 800.0)
    rates.take_prompt("c", 1, 900.0)


def test_without_limits_nothing_is_kept() -> None:
    rates = RateLimits()
    for _ in range(1000):
        rates.take_request("a", 0.0)
        rates.take_prompt("a", 10**9, 0.0)
        rates.generated("a", 10**9, 0.0)
    assert vars(rates) == vars(RateLimits())


def test_what_is_left_as_headers() -> None:
    rates = RateLimits(requests_per_minute=2, tokens_per_minute=600)
    rates.take_request("a", 0.0)
    rates.take_prompt("a", 100, 0.0)
    rates.generated("a", 5, 0.0)
    assert rates.headers("a", 0.0) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "30s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "495",
        "x-ratelimit-reset-tokens": "10.5s",
    }
    rates.generated("a", 600, 0.0)  # overdrawn
    left = rates.headers("a", 0.0)
    assert left["x-ratelimit-remaining-tokens"] == "0"
    assert left["x-ratelimit-reset-tokens"] == "1m10.5s"
    assert rates.headers("a", 1000.0)["x-ratelimit-remaining-tokens"] == "600"
    assert rates.headers("b", 0.0)["x-ratelimit-reset-requests"] == "0ms"
    assert RateLimits().headers("a", 0.0) == {}
    shared = RateLimits(requests_per_minute=100 / 3, tokens_per_minute=1_000_000)
    told = shared.headers("a", 0.0)  # as clients read them: whole numbers, in digits
    limits = [told[f"x-ratelimit-limit-{what}"] for what in ("requests", "tokens")]
    assert limits == ["33", "1000000"]
    assert RateLimits(tokens_per_minute=7).headers("a", 0.0).keys() == {
        f"x-ratelimit-{part}-tokens" for part in ("limit", "remaining", "reset")
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0ms"), (0.0171, "18ms"), (0.9999, "1s"), (1.0, "1s"), (59.9995, "1m0s"), (360, "6m0s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
