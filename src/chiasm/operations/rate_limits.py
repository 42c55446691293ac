"""How fast a key may ask: requests and image tokens a minute.

A token bucket for each (Turner 1986, *New directions in communications*): it holds a minute's
allowance and fills steadily. The buckets are this process's own: nothing is asked over a network
on the way of a request, but of a server with several processes each allows the whole rate.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chiasm.errors import InvalidRequest, RateLimited

if TYPE_CHECKING:
    from chiasm.operations.keys import Key

_MINUTE = 60.0
_MANY_KEYS = 10_000


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float  # when the level was so; seconds of the clock

    def filled(self, limit: int, now: float) -> float:
        return min(limit, self.level + (now - self.at) * limit / _MINUTE)


class RateLimits:
    """The buckets of all keys. clock: seconds, steady."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._lock = threading.Lock()

    def admit(self, key: Key, image_tokens: int = 0) -> None:
        """Count one request with so many image tokens, or refuse it and count nothing.

        Raises RateLimited, which says after how many seconds it would pass; InvalidRequest where
        one request alone takes more image tokens than a minute allows.
        """
        wanted = [
            ("requests", key.requests_per_minute, 1),
            ("image tokens", key.image_tokens_per_minute, image_tokens),
        ]
        limits = [(what, limit, amount) for what, limit, amount in wanted if limit is not None]
        if not limits:
            return
        for what, limit, amount in limits:
            if amount > limit:
                raise InvalidRequest(
                    f"This request takes {amount:,} {what}; the key {key.name!r} may take "
                    f"{limit:,} a minute.",
                    hint="Send fewer or smaller pictures, or set max_image_tokens.",
                )
        with self._lock:
            now = self._clock()
            levels = [self._level(key.id, what, limit, now) for what, limit, _ in limits]
            for (what, limit, amount), level in zip(limits, levels, strict=True):
                if level < amount:
                    raise _refusal(key, what, limit, (amount - level) * _MINUTE / limit)
            if len(self._buckets) > _MANY_KEYS:
                self._forget(now)
            for (what, _, amount), level in zip(limits, levels, strict=True):
                self._buckets[key.id, what] = _Bucket(level - amount, now)

    def _level(self, key_id: str, what: str, limit: int, now: float) -> float:
        bucket = self._buckets.get((key_id, what))
        return float(limit) if bucket is None else bucket.filled(limit, now)

    def _forget(self, now: float) -> None:
        """Buckets that are full again, whatever their limit, say nothing."""
        self._buckets = {
            name: bucket for name, bucket in self._buckets.items() if now - bucket.at < _MINUTE
        }


def _refusal(key: Key, what: str, limit: int, seconds: float) -> RateLimited:
    wait = max(1, math.ceil(seconds))
    return RateLimited(
        f"The key {key.name!r} may take {limit:,} {what} a minute, and has.",
        retry_after=wait,
        hint=f"Ask again in {wait} s.",
    )
