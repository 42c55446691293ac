"""How long a server elsewhere is waited for, and what it is called when that was too long."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from chiasm.errors import GeneratorFailed, TimedOut

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """Seconds that a server is waited for: to accept, for its first token, between two tokens.

    A busy server lets requests wait, so the first token may take long.
    """

    connect: float = 5.0
    first_token: float = 300.0
    between: float = 60.0


@dataclass(frozen=True)
class Clock:
    """Waits for a server, but not beyond the end of the request's own time.

    end: as `time.perf_counter` has it.
    """

    end: float = math.inf

    @classmethod
    def until(cls, started: float, deadline: float | None) -> Clock:
        """For a request that came at `started` and is of use for so many seconds; None: always."""
        return cls(started + (math.inf if deadline is None else deadline))

    async def wait(self, awaited: Awaitable[T], seconds: float, *, spent: float = 0.0) -> T:
        """Raises GeneratorFailed after so many seconds, TimedOut at the end.

        spent: of those seconds, the ones that were waited before.
        """
        left = self.end - time.perf_counter()
        try:
            async with asyncio.timeout(max(0.0, min(seconds - spent, left))):
                return await awaited
        except TimeoutError:
            if left <= seconds - spent:
                raise TimedOut("The request's deadline has passed.") from None
            raise GeneratorFailed(
                f"The model's server has been silent for {seconds:g} seconds."
            ) from None


class Progress(Protocol):
    """How far an answer has come. signs: of life, grows with each token, thoughts too."""

    @property
    def begun(self) -> bool: ...

    @property
    def signs(self) -> int: ...


@dataclass
class Silence:
    """Seconds that a server has said nothing while it was listened to.

    What passes while nobody listens, because an answer's reader is slow, is not the server's fault.
    """

    patience: Patience
    clock: Clock
    answer: Progress
    _spent: float = 0.0
    _signs: int = 0

    async def wait(self, awaited: Awaitable[T]) -> T:
        """Raises GeneratorFailed when it has lasted too long, TimedOut at the request's end."""
        if self.answer.signs != self._signs:
            self._spent, self._signs = 0.0, self.answer.signs
        seconds = self.patience.between if self.answer.begun else self.patience.first_token
        since = time.perf_counter()
        try:
            return await self.clock.wait(awaited, seconds, spent=self._spent)
        finally:
            self._spent += time.perf_counter() - since
