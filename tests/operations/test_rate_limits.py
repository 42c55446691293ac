"""Rates: requests and image tokens a minute."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest

from chiasm.errors import InvalidRequest, RateLimited
from chiasm.operations.keys import Key
from chiasm.operations.rate_limits import RateLimits


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def key(requests: int | None = None, tokens: int | None = None, name: str = "a") -> Key:
    made = datetime(2026, 11, 25, tzinfo=UTC)
    return Key(
        name, name, made, "chk-", requests_per_minute=requests, image_tokens_per_minute=tokens
    )


def wait(limits: RateLimits, who: Key, tokens: int = 0) -> int:
    with pytest.raises(RateLimited) as caught:
        limits.admit(who, tokens)
    assert (caught.value.http_status, caught.value.kind) == (429, "rate_limit_error")
    return caught.value.retry_after


def test_a_minutes_allowance_at_once_then_a_steady_rate(clock: Clock) -> None:
    limits, who = RateLimits(clock), key(requests=30)
    for _ in range(30):
        limits.admit(who)
    assert wait(limits, who) == 2  # 30 a minute is one in two seconds
    clock.seconds += 1.9
    assert wait(limits, who) == 1
    clock.seconds += 0.2
    limits.admit(who)
    wait(limits, who)
    clock.seconds += 3600
    for _ in range(30):
        limits.admit(who)
    wait(limits, who)


def test_who_waits_as_long_as_told_passes(clock: Clock) -> None:
    limits, who = RateLimits(clock), key(tokens=1000)
    limits.admit(who, 700)
    clock.seconds += wait(limits, who, 800)
    limits.admit(who, 800)


def test_what_is_refused_is_not_counted(clock: Clock) -> None:
    limits, who = RateLimits(clock), key(requests=2, tokens=100)
    limits.admit(who, 100)
    wait(limits, who, 50)
    wait(limits, who, 50)
    limits.admit(who, 0)  # the second request of two
    wait(limits, who, 0)


def test_keys_do_not_share(clock: Clock) -> None:
    limits = RateLimits(clock)
    limits.admit(key(requests=1))
    wait(limits, key(requests=1))
    limits.admit(key(requests=1, name="b"))
    for _ in range(100):
        limits.admit(key(name="free"), 10**9)


def test_more_than_a_minute_allows_would_never_pass(clock: Clock) -> None:
    with pytest.raises(InvalidRequest, match="takes 2,000 image tokens") as caught:
        RateLimits(clock).admit(key(tokens=1000), 2000)
    assert caught.value.http_status == 400


def test_threads_together_do_not_pass_more(clock: Clock) -> None:
    limits, who, passed = RateLimits(clock), key(requests=500), []

    def ask() -> None:
        for _ in range(100):
            try:
                limits.admit(who)
            except RateLimited:
                continue
            passed.append(1)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passed) == 500
