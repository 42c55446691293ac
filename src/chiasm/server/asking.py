"""A question's way through the server, the same for every route that asks one.

`server/routes` reads the body → `media` looks at the pictures → `operations` plans and reserves →
`generation` answers → `operations` settles and records. Each step is one call below.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chiasm.generation.router import Trace
from chiasm.server.streaming import begun

if TYPE_CHECKING:
    from chiasm.generation import Event, Request
    from chiasm.generation.targets import Route
    from chiasm.server.runtime import Runtime


@dataclass(frozen=True)
class Question:
    """What a route has read. model: as the caller wrote it; None is the server's own.

    request: complete, its pictures looked at and not decoded.
    restart: what has been said may be said anew by another model.
    """

    model: str | None
    request: Request
    restart: bool = False


@dataclass(frozen=True)
class Answer:
    """An answer under way. model: the name that is shown. digest: the weights', where known."""

    model: str
    digest: str
    events: AsyncGenerator[Event]
    trace: Trace


async def ask(question: Question, runtime: Runtime) -> Answer:
    """The answer, once its first event is there: what is wrong with the question is raised here.

    Raises UnknownModel, and what `Router.stream` raises. Close `events`, or take all of them.
    """
    route = await runtime.route(question.model)
    trace = Trace()
    events = await begun(_answered(question, route, runtime, trace))
    return Answer(route.name, runtime.digest_of(route), events, trace)


async def _answered(
    question: Question, route: Route, runtime: Runtime, trace: Trace
) -> AsyncGenerator[Event]:
    answer = runtime.router.stream(route, question.request, trace, restart=question.restart)
    async with aclosing(answer) as events:
        async for event in events:
            yield event
