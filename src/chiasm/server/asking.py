"""A question's way through the server, the same for every route that asks one.

`server/routes` reads the body → `media` looks at the pictures → `operations` plans and reserves →
`generation` answers → `operations` settles and records. `_answered` is that way.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from chiasm.errors import ChiasmError
from chiasm.generation import Completed, Request, TextDelta, ToolCallDelta, Usage
from chiasm.generation.messages import images_of
from chiasm.generation.router import Trace
from chiasm.operations.ledger import Entry
from chiasm.server.accounts import bounded, content_of
from chiasm.server.streaming import begun

if TYPE_CHECKING:
    from fastapi import Request as Http

    from chiasm.generation import Event
    from chiasm.generation.targets import Route, Target
    from chiasm.operations.plan import Estimate
    from chiasm.server.callers import Caller
    from chiasm.server.runtime import Runtime

_CLIENT_GONE = 499
_MANY_PICTURES = 8  # to plan for more takes milliseconds, and a thread of its own


@dataclass(frozen=True)
class Question:
    """What a route has read.

    route: what the caller's name for a model means.
    request: complete, its pictures looked at and not decoded.
    streamed: whether words are sent as they come.
    restart: what has been said may be said anew by another model.
    """

    route: Route
    request: Request
    streamed: bool = False
    restart: bool = False


@dataclass(frozen=True)
class Answer:
    """An answer under way.

    model: the name that is shown. digest: the weights', where known. planned: tokens of the
        prompt, as they were expected.
    """

    model: str
    digest: str
    events: AsyncGenerator[Event]
    planned: int


async def ask(question: Question, caller: Caller, http: Http, runtime: Runtime) -> Answer:
    """The answer, once its first event is there: what is wrong with the question is raised here.

    Raises KeyForbidden, what `Accounts.hold` and what `Router.stream` raise.
    Close `events`, or take all of them.
    """
    route = question.route
    record = _Record(question, completed(question.request, route, caller), caller, http)
    events = await begun(_answered(record, runtime))
    planned = 0 if record.planned is None else record.planned.prompt_tokens
    return Answer(route.name, runtime.digest_of(route), events, planned)


async def _answered(record: _Record, runtime: Runtime) -> AsyncGenerator[Event]:
    accounts, caller, request = await runtime.accounts(), record.caller, record.request
    books, router, trace = runtime.books, runtime.router, record.trace
    route, restart = record.question.route, record.question.restart

    def plan() -> tuple[list[Target], list[Estimate]]:
        targets = router.order(route, request)
        return targets, [books.planned(each, request) for each in targets]

    try:
        caller.require_model(route.name)
        many = len(images_of(request.messages)) > _MANY_PICTURES
        targets, estimates = await runtime.run(plan) if many else plan()
        record.planned = estimates[0]
        hold = await accounts.hold(
            caller, books.most(estimates, hedged=bool(route.how.hedge_seconds))
        )
        try:
            answer = router.stream(route, targets, request, trace, restart=restart)
            async with aclosing(answer) as events:
                async for event in events:
                    if isinstance(event, Completed):
                        event = Completed(books.billed(trace, request, event.usage))
                        if trace.target in targets:
                            record.planned = estimates[targets.index(trace.target)]
                    record.see(event)
                    yield event
        finally:
            record.lost = books.lost(trace, request)
            await hold.settle(record.cost, record.image_tokens)
    except ChiasmError as error:
        record.error = error
        raise
    finally:
        accounts.ledger.put(record.entry(with_content=accounts.content))


def completed(asked: Request, route: Route, caller: Caller) -> Request:
    """The request with what its route and its caller's key add to it."""
    how = route.how
    return bounded(
        replace(
            asked,
            max_tokens=asked.max_tokens or how.max_tokens or None,
            max_image_tokens=_smaller(asked.max_image_tokens, how.max_image_tokens or None),
            tenant=caller.tenant(asked.tenant),
        ),
        caller,
    )


def _smaller(one: int | None, other: int | None) -> int | None:
    return min((each for each in (one, other) if each is not None), default=None)


@dataclass
class _Record:
    """What the ledger will say of a question, gathered on its way."""

    question: Question
    request: Request
    caller: Caller
    http: Http
    trace: Trace = field(default_factory=Trace)
    planned: Estimate | None = None
    usage: Usage | None = None
    error: ChiasmError | None = None
    lost: list[Usage] = field(default_factory=list)
    whole: bool = False
    first: float | None = None
    begun: float = field(default_factory=time.perf_counter)
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def see(self, event: Event) -> None:
        """An event passes."""
        if isinstance(event, Completed):
            self.usage, self.whole = event.usage, True
        elif isinstance(event, TextDelta | ToolCallDelta) and self.first is None:
            self.first = time.perf_counter() - self.begun

    @property
    def charged(self) -> list[Usage]:
        """The answer, and whatever was begun for it and came to no end."""
        return [*self.lost, self.usage] if self.usage is not None else self.lost

    @property
    def cost(self) -> Decimal | None:
        """All of it, in USD; None where a price is not known."""
        costs = [each.cost for each in self.charged]
        known = [cost for cost in costs if cost is not None]
        return sum(known, Decimal(0)) if len(known) == len(costs) else None

    @property
    def image_tokens(self) -> int:
        """All of them, but those of an answer that was remembered."""
        return 0 if self.trace.from_cache else sum(each.image_tokens for each in self.charged)

    def entry(self, *, with_content: bool) -> Entry:
        """The row, when all is over."""
        route, planned = self.question.route, self.planned
        target, first = self.trace.target or route.targets[0], route.targets[0].name
        usage = self.usage or (self.lost[-1] if self.lost else None)
        status = 200 if self.whole else _CLIENT_GONE
        return Entry(
            time=self.time,
            request_id=self.http.state.request_id,
            route=self.http.url.path,
            alias=route.name,
            provider=target.provider,
            model=target.model,
            status=status if self.error is None else self.error.http_status,
            error=self.error.code or self.error.kind if self.error is not None else None,
            key=None if self.caller.key is None else self.caller.key.id,
            images=len(images_of(self.request.messages)),
            text_tokens=usage.text_tokens if usage else 0,
            image_tokens=usage.image_tokens if usage else 0,
            cached_tokens=usage.cached_tokens if usage else 0,
            answer_tokens=usage.answer_tokens if usage else 0,
            planned_text_tokens=planned.text_tokens if planned else None,
            planned_image_tokens=planned.image_tokens if planned else None,
            planned_cost=planned.cost if planned else None,
            cost=self.cost,
            seconds_to_first_token=self.first,
            seconds=time.perf_counter() - self.begun,
            retries=self.trace.retries,
            fallback=first if target.name != first else None,
            cache_hit=self.trace.from_cache,
            streamed=self.question.streamed,
            content=content_of(self.request) if with_content else None,
        )
