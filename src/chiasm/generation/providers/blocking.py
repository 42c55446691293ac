"""The same answer for who has no event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

from chiasm.generation.request import Event


async def _nothing() -> None:
    pass


def without_loop(
    events: AsyncGenerator[Event], leave: Callable[[], Awaitable[None]] = _nothing
) -> Iterator[Event]:
    """Blocks between events. leave: lets go of what belongs to the loop that ran them."""

    async def following() -> Event | None:
        return await anext(events, None)

    async def end() -> None:
        await events.aclose()
        await leave()

    with asyncio.Runner() as runner:
        try:
            while (event := runner.run(following())) is not None:
                yield event
        finally:
            runner.run(end())
