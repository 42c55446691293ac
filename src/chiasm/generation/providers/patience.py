"""How long a server elsewhere is waited for, and what it is called when that was too long."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

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
