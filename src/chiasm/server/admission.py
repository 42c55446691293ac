"""Who may ask now, who waits, and who is sent away.

A generator works on a few questions at once; more would only make each of them slower. The others
wait here, and they wait lightly: their pictures lie on the disk, not in memory. When too many wait,
the next is refused with the number of seconds after which there should be room, counted from how
fast answers have been leaving.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from chiasm.errors import Overloaded, TimedOut

_FIRST_GUESS = 5.0  # seconds of an answer, until one has been measured
_MEMORY = 0.2  # the share of the newest answer in the mean
_LONGEST_RETRY = 600


@dataclass(order=True)
class _Waiting:
    priority: int
    number: int
    admitted: anyio.Event = field(compare=False)
    gone: bool = field(default=False, compare=False)


class Admission:
    """Places for `places` questions, and a queue for `waiting` more. Used in one event loop."""

    def __init__(self, places: int, waiting: int) -> None:
        self.places = places
        self.most_waiting = waiting
        self.taken = 0
        self._queue: list[_Waiting] = []
        self._numbers = itertools.count()
        self._seconds = _FIRST_GUESS

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(not one.gone for one in self._queue)

    @property
    def retry_after(self) -> int:
        """Whole seconds until a newcomer should find room in the queue and an answer soon after."""
        rounds = (self.waiting + self.taken + 1) / self.places
        return max(1, min(math.ceil(rounds * self._seconds), _LONGEST_RETRY))

    @asynccontextmanager
    async def place(
        self,
        *,
        priority: int = 0,
        deadline: float | None = None,
        before_waiting: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncGenerator[None]:
        """Hold a place; the smaller the priority, the sooner it is had.

        deadline: seconds to wait for it at most. before_waiting: called only if it has to wait.
        Raises Overloaded when too many wait already, TimedOut at the deadline.
        """
        await self._enter(priority, deadline, before_waiting)
        begun = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - begun
            self._seconds += _MEMORY * (took - self._seconds)
            self._leave()

    async def _enter(
        self,
        priority: int,
        deadline: float | None,
        before_waiting: Callable[[], Awaitable[None]] | None,
    ) -> None:
        if self.taken < self.places and not self.waiting:
            self.taken += 1
            return
        if self.waiting >= self.most_waiting:
            raise Overloaded(
                f"The server is at its limit: {self.waiting} questions wait already.",
                hint=f"Try again in {self.retry_after} seconds.",
                retry_after=self.retry_after,
            )
        waiting = _Waiting(priority, next(self._numbers), anyio.Event())
        heapq.heappush(self._queue, waiting)
        try:
            with anyio.fail_after(deadline):
                if before_waiting is not None:
                    await before_waiting()
                await waiting.admitted.wait()
        except BaseException as error:
            waiting.gone = True
            if waiting.admitted.is_set():  # the place came too late to be of use
                self._leave()
            if isinstance(error, TimeoutError):
                raise TimedOut(
                    f"The question's turn did not come within {deadline:g} seconds."
                ) from None
            raise

    def _leave(self) -> None:
        """Give the place to who has waited longest of those with the first priority."""
        self.taken -= 1
        while self._queue and self.taken < self.places:
            waiting = heapq.heappop(self._queue)
            if not waiting.gone:
                self.taken += 1
                waiting.admitted.set()
