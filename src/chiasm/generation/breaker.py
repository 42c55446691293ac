"""A circuit breaker: a provider that fails again and again is left alone for a while.

Closed, requests go through; after so many failures in a row it opens and none does; when its rest
is over, one request is let through to see, and what becomes of it closes or opens it again
(Nygard, Release It!, 2nd edition, chapter 5).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal


class Breaker:
    """Counts the failures of one provider. Used in one event loop."""

    def __init__(
        self, failures: int, rest_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = failures
        self._rest = rest_seconds
        self._clock = clock
        self._failures = 0
        self._opened: float | None = None
        self._trying = False

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        """`half-open`: its rest is over, and the next request is a trial."""
        if self._opened is None:
            return "closed"
        return "half-open" if self._clock() - self._opened >= self._rest else "open"

    @property
    def usable(self) -> bool:
        """Whether a request may go through now."""
        return self.state == "closed" or (self.state == "half-open" and not self._trying)

    def begin(self) -> bool:
        """A request goes through. Whether it is the trial: how it ends is told with that."""
        trial = self._opened is not None and not self._trying
        self._trying = self._trying or trial
        return trial

    def succeed(self) -> None:
        """It was answered, or refused as the caller's own fault: the provider is well."""
        self._failures, self._opened, self._trying = 0, None, False

    def fail(self, trial: bool = False) -> None:
        """The provider failed it."""
        if self._opened is not None and not trial:
            return  # begun before the breaker opened: nothing new
        self._failures += 1
        if trial or self._failures >= self._most:
            self._opened, self._trying = self._clock(), False

    def give_up(self, trial: bool = False) -> None:
        """The request ended for another reason, which says nothing about the provider."""
        if trial:
            self._trying = False
