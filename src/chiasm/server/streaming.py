"""How an answer leaves: whole, or as server-sent events; and how its end is never missed.

What is wrong with a question shows at its first event, before a status is sent. Whoever goes away
before the end stops the work. What goes wrong after the status is an event as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import pydantic_core
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from chiasm.errors import ChiasmError
from chiasm.server.errors import log_unexpected

if TYPE_CHECKING:
    from chiasm.generation import Event

T = TypeVar("T")

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


async def while_connected(request: Request, work: Callable[[], Awaitable[T]]) -> T | None:
    """What `work` gives; None, and `work` cancelled, if the client goes away before that."""
    with anyio.CancelScope() as scope:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            scope.cancel()

        # No task group: it would cost every request a tenth of a millisecond.
        watching = asyncio.create_task(watch())
        try:
            return await work()
        finally:
            watching.cancel()
    return None


async def begun(events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
    """The same events, once the first is there: what is wrong with the question is raised here."""
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise
    return _Begun(first, events)


class _Begun(AsyncGenerator["Event"]):
    """Events whose first was taken already. Closes what is behind, even if none is taken."""

    def __init__(self, first: Event, events: AsyncGenerator[Event]) -> None:
        self._first: Event | None = first
        self._events = events

    async def __anext__(self) -> Event:
        first, self._first = self._first, None
        return await self._events.__anext__() if first is None else first

    async def asend(self, value: None) -> Event:
        """As `__anext__`: nothing is ever sent in."""
        return await self.__anext__()

    async def athrow(self, *error: Any) -> Event:
        """Passed on."""
        return await self._events.athrow(*error)

    async def aclose(self) -> None:
        """Ends the work."""
        await self._events.aclose()


class Stream(StreamingResponse):
    """Server-sent events. Ends the work even if nobody takes any of them."""

    def __init__(self, said: AsyncGenerator[bytes], events: AsyncGenerator[Event]) -> None:
        super().__init__(said, media_type="text/event-stream", headers=_HEADERS)
        self._said, self._events = said, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                # A generator that was never begun would not run to its own end.
                await self._said.aclose()
                await self._events.aclose()


async def with_troubles(
    said: AsyncGenerator[bytes],
    trouble: Callable[[ChiasmError | None], bytes],
    request: Request,
    last: bytes = b"",
) -> AsyncGenerator[bytes]:
    """The events of `said`; what goes wrong becomes one more, made by `trouble`; then `last`.

    trouble: is given None for what nobody foresaw.
    """
    async with aclosing(said):
        try:
            async for each in said:
                yield each
        except ChiasmError as error:
            yield trouble(error)
        except Exception as error:
            log_unexpected(error, request.state.request_id)
            yield trouble(None)
        if last:
            yield last


def sse(body: dict[str, Any], event: str = "") -> bytes:
    """One server-sent event."""
    name = b"event: " + event.encode() + b"\n" if event else b""
    return name + b"data: " + pydantic_core.to_json(body) + b"\n\n"
