"""An answer as the HTTP response that carries it, the same for every shape."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Request, Response

from chiasm.server.asking import Answer, Question, ask
from chiasm.server.streaming import Stream, while_connected, with_troubles

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from chiasm.errors import ChiasmError
    from chiasm.server.callers import Caller
    from chiasm.server.runtime import Runtime


@dataclass(frozen=True)
class Shape:
    """How one API writes answers.

    whole: all of it. events: as server-sent events. trouble: the event that says why there will
    be no more; None is what nobody foresaw. last: what ends every stream.
    """

    whole: Callable[[Answer], Awaitable[bytes]]
    events: Callable[[Answer], AsyncGenerator[bytes]]
    trouble: Callable[[ChiasmError | None], bytes]
    last: bytes = b""


async def respond(
    question: Question, shape: Shape, caller: Caller, http: Request, runtime: Runtime
) -> Response:
    """Ask, and answer whole or as a stream. Whoever goes away before the end stops the work.

    Raises what `ask` raises.
    """

    async def begin() -> Answer:
        return await ask(question, caller, http, runtime)

    async def whole() -> bytes:
        return await shape.whole(await begin())

    if not question.streamed:
        answer = await while_connected(http, whole)
        if answer is None:
            return Response(status_code=499)  # nobody is left to receive it
        return Response(answer, media_type="application/json")
    begun = await while_connected(http, begin)
    if begun is None:
        return Response(status_code=499)
    said = with_troubles(shape.events(begun), shape.trouble, http, shape.last)
    return Stream(said, begun.events)
