"""One door to every model: who is asked, again or next, and when a question is given up.

A route's targets are asked in turn. What a provider fails before its first word is tried again,
after a pause that grows and is never the same twice, and then with the next target; once a word
has been sent an answer is never begun anew, unless the caller has said that it may be.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

from chiasm.errors import (
    ChiasmError,
    ContextExceeded,
    GeneratorFailed,
    GeneratorUnreachable,
    InvalidRequest,
    NoModelQualifies,
    ProviderBusy,
    ProviderKeyRefused,
    TimedOut,
    Unsupported,
)
from chiasm.generation.breaker import Breaker
from chiasm.generation.providers.loading import Providers
from chiasm.generation.request import (
    Completed,
    Event,
    Finished,
    RefusalDelta,
    Request,
    Restarted,
    TextDelta,
    ToolCallDelta,
    after_waiting,
)
from chiasm.generation.response_cache import ResponseCache, key_of
from chiasm.generation.targets import Route, Target
from chiasm.settings import ProviderSettings

log = logging.getLogger("chiasm.generation")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0  # seconds
_LONGEST_RETRY_AFTER = 20.0  # a provider that wants a longer pause is not waited for
_MEMORY = 0.2  # the share of the newest answer in the mean time to a first token

Local = Callable[[Target, Request], AsyncGenerator[Event]]
Price = Callable[[Target, Request], float | None]
Accuracy = Callable[[str, Target], float | None]
Fit = Callable[[Target, Request], Request]


@dataclass(frozen=True)
class Attempt:
    """A target that was asked.

    trouble: the error's code; "cancelled" where nobody wanted its answer any more; None where it
    answered. sent: it may have begun to work, and to charge. text, pieces: what it said, its wishes
    for tools and refusals as well.
    """

    at: Target
    trouble: str | None
    seconds: float
    sent: bool = False
    text: str = ""
    pieces: int = 0

    @property
    def target(self) -> str:
        """Its name."""
        return self.at.name

    @property
    def lost(self) -> bool:
        """Whether it was charged for an answer that it did not bring to its end."""
        return self.trouble is not None and self.sent


@dataclass
class Trace:
    """What became of one question, filled in while it is answered."""

    attempts: list[Attempt] = field(default_factory=list)
    target: Target | None = None
    from_cache: bool = False
    hedged: bool = False
    restarted: bool = False

    @property
    def retries(self) -> int:
        """Attempts beyond the first."""
        return max(0, len(self.attempts) - 1)


class Router:
    """Answers questions by whoever a route names. Used in one event loop."""

    def __init__(
        self,
        providers: Providers,
        local: Local,
        *,
        price: Price = lambda target, request: None,
        accuracy: Accuracy = lambda evaluation, target: None,
        fit: Fit = lambda target, request: request,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """local: asks a model of this server. price: USD that a request is expected to cost, and
        accuracy: what was measured of a target on an evaluation; None where nobody knows. fit:
        the request with its pictures scaled to what it may take of that target.
        """
        self._providers = providers
        self._local = local
        self._price = price
        self._accuracy = accuracy
        self._fit = fit
        self._pause = pause
        self._clock = clock
        self._cache = ResponseCache(clock=clock)
        self._seconds: dict[str, float] = {}
        self._breakers = {
            name: Breaker(each.failures, each.rest_seconds, clock=clock)
            for name, each in providers.settings.items()
        }

    @property
    def breakers(self) -> dict[str, Breaker]:
        """By provider."""
        return self._breakers

    def first_token_seconds(self, target: Target) -> float | None:
        """How long a target's first token took of late; None if it was never asked."""
        return self._seconds.get(target.name)

    # Choosing --------------------------------------------------------------------------------

    def order(self, route: Route, request: Request) -> list[Target]:
        """The route's targets as this request should ask them.

        Raises NoModelQualifies where the route demands an accuracy that none was measured to have.
        """
        how = route.how
        targets = list(route.targets)
        if how.min_accuracy:
            measured = {each: self._accuracy(how.evaluation, each) for each in targets}
            targets = [each for each in targets if (measured[each] or 0.0) >= how.min_accuracy]
            if not targets:
                raise NoModelQualifies(
                    f"No model of {route.name} was measured to reach {how.min_accuracy:g} on "
                    f"{how.evaluation}.",
                    hint=f"Measure them with chiasm eval run {how.evaluation}.",
                )
        # What nobody knows comes last, in the order in which it stands.
        if how.choose == "cheapest":
            prices = {each: self._price(each, request) for each in targets}
            targets.sort(key=lambda each: _or_last(prices[each]))
        elif how.choose == "fastest":
            targets.sort(key=lambda each: _or_last(self._seconds.get(each.name)))
        return targets

    # Asking ----------------------------------------------------------------------------------

    async def stream(
        self,
        route: Route,
        targets: Sequence[Target],
        request: Request,
        trace: Trace,
        *,
        restart: bool = False,
    ) -> AsyncGenerator[Event]:
        """The answer's events; closing the iterator ends the work. targets: as `order` has them.

        Raises the last target's error when none has answered.
        """
        how = route.how
        key = None
        if how.cache_seconds:
            # In a thread: digests of pictures take milliseconds.
            key = await asyncio.to_thread(key_of, request, [each.name for each in targets])
        known = self._cache.get(key, how.cache_seconds) if key else None
        if known is not None:
            trace.from_cache = True
            trace.target, events = known
            for event in events:
                yield event
            return
        said: list[Event] = []
        answer = self._in_turn(route, targets, request, trace, restart or how.restart)
        async with aclosing(answer) as answered:
            async for event in answered:
                if isinstance(event, Restarted):
                    said.clear()
                elif key is not None:
                    said.append(event)
                yield event
        if key is not None and trace.target is not None and _whole(said):
            self._cache.put(key, trace.target, said)

    async def _in_turn(
        self,
        route: Route,
        targets: Sequence[Target],
        request: Request,
        trace: Trace,
        restart: bool,
    ) -> AsyncGenerator[Event]:
        failure: ChiasmError | None = None
        left = list(targets)
        while left:
            target = left.pop(0)
            if not self._usable(target):
                trace.attempts.append(Attempt(target, "circuit_open", 0.0))
                failure = failure or GeneratorUnreachable(
                    f"{target.name} has failed again and again, and is left alone for a while.",
                    hint="Try again in a moment.",
                )
                continue
            for retry in range(route.how.retries + 1):
                if not self._usable(target):
                    break  # others' failures have opened its breaker meanwhile
                rivals = [target]
                if route.how.hedge_seconds and left and self._usable(left[0]):
                    rivals.append(left[0])
                begun = False
                try:
                    async with aclosing(self._attempt(route, rivals, request, trace)) as events:
                        async for event in events:
                            if not begun and trace.restarted:
                                yield Restarted()
                            begun = True
                            yield event
                except ChiasmError as error:
                    failure = error
                    if begun:
                        if not (restart and _passes(error)):
                            raise
                        trace.restarted = True
                    if not (_passes(error) or isinstance(error, ContextExceeded | Unsupported)):
                        raise
                    wait = _wait(error, retry, last=retry == route.how.retries, others=bool(left))
                    if wait is None:
                        break
                    await self._pause(wait)
                else:
                    return
        assert failure is not None
        raise failure

    def _usable(self, target: Target) -> bool:
        breaker = self._breakers.get(target.provider)
        return breaker is None or breaker.usable

    async def _attempt(
        self, route: Route, rivals: Sequence[Target], request: Request, trace: Trace
    ) -> AsyncGenerator[Event]:
        """One target's answer; with a second rival the one whose first word comes first."""
        if len(rivals) == 1:
            async with aclosing(self._ask(route, rivals[0], request, trace)) as events:
                async for event in events:
                    trace.target = rivals[0]
                    yield event
            return
        async with AsyncExitStack() as stack:
            race = _Race()
            stack.push_async_callback(race.close)
            race.start(rivals[0], self._ask(route, rivals[0], request, trace))
            winner = await race.first(route.how.hedge_seconds)
            if winner is None:
                trace.hedged = True
                race.start(rivals[1], self._ask(route, rivals[1], request, trace))
                winner = await race.first(None)
            assert winner is not None
            trace.target = winner
            async for event in race.rest(winner):
                yield event

    async def _ask(
        self, route: Route, target: Target, request: Request, trace: Trace
    ) -> AsyncGenerator[Event]:
        """One target, watched: its breaker, its time to the first token, its troubles."""
        breaker = self._breakers.get(target.provider)
        trial = breaker.begin() if breaker is not None else False
        begun, trouble, told = self._clock(), "cancelled", False
        progress = _Progress()
        try:
            first = True
            async with aclosing(self._events(route, target, request, progress)) as events:
                async for event in events:
                    if first:
                        first = False
                        self._learn(target, self._clock() - begun)
                    progress.see(event)
                    yield event
            trouble, told = "", True
            if breaker is not None:
                breaker.succeed()
        except ChiasmError as error:
            trouble = error.code or "internal_error"
            if breaker is not None and not isinstance(error, ProviderBusy | TimedOut):
                if isinstance(error, GeneratorUnreachable | GeneratorFailed):
                    breaker.fail(trial)
                    told = True
                elif isinstance(error, InvalidRequest):
                    breaker.succeed()
                    told = True
            if _passes(error):
                log.warning("%s: %s", target.name, error)
            raise
        finally:
            if breaker is not None and not told:
                breaker.give_up(trial)
            # Who failed before the first word is taken to charge nothing; who was left, the prompt.
            sent = progress.pieces > 0 or (progress.posted and trouble == "cancelled")
            seconds, text = self._clock() - begun, "".join(progress.text)
            trace.attempts.append(
                Attempt(target, trouble or None, seconds, sent, text, progress.pieces)
            )

    async def _events(
        self, route: Route, target: Target, request: Request, progress: _Progress
    ) -> AsyncGenerator[Event]:
        """The target's own events, each in its time."""
        request = self._fit(target, request)
        if not target.provider:
            progress.posted = True
            async with aclosing(self._local(target, request)) as events:
                async for event in events:
                    yield event
            return
        settings: ProviderSettings = self._providers.settings[target.provider]
        how = route.how
        first = how.first_token_seconds or settings.first_token_seconds
        between = how.between_seconds or settings.between_seconds
        async with AsyncExitStack() as stack:
            request = await self._placed(stack, target, request, first)
            generator = await self._providers.generator(target)
            progress.posted = True
            async with aclosing(generator.stream(request)) as events:
                wait = first
                while True:
                    try:
                        async with asyncio.timeout(wait):
                            said = await _next(events)
                    except TimeoutError:
                        raise GeneratorFailed(
                            f"{target.name} has been silent for {wait:g} seconds."
                        ) from None
                    if said is None:
                        return
                    wait = between
                    yield said

    async def _placed(
        self, stack: AsyncExitStack, target: Target, request: Request, seconds: float
    ) -> Request:
        """Hold one of the provider's places; the request with what is left of its deadline.

        Raises ProviderBusy when none was free for so long, TimedOut at the deadline.
        """
        begun = time.monotonic()
        longest = min(seconds, request.deadline or seconds)
        try:
            async with asyncio.timeout(longest):
                await stack.enter_async_context(self._providers.place(target.provider))
        except TimeoutError:
            if request.deadline is not None and request.deadline <= seconds:
                raise TimedOut("The request's deadline has passed.") from None
            raise ProviderBusy(
                f"{target.provider} is asked as many questions at once as it may be.",
                hint="Try again in a moment.",
            ) from None
        return after_waiting(request, time.monotonic() - begun)

    def _learn(self, target: Target, seconds: float) -> None:
        before = self._seconds.get(target.name, seconds)
        self._seconds[target.name] = before + _MEMORY * (seconds - before)


@dataclass
class _Progress:
    """How far one target came. posted: the question went to it."""

    posted: bool = False
    pieces: int = 0
    text: list[str] = field(default_factory=list)

    def see(self, event: Event) -> None:
        """An event passes."""
        if isinstance(event, TextDelta | RefusalDelta):
            self.text.append(event.text)
        elif isinstance(event, ToolCallDelta):
            self.text.append(event.name + event.arguments)
        else:
            return
        self.pieces += 1


async def _next(events: AsyncGenerator[Event]) -> Event | None:
    async for event in events:
        return event
    return None


def _passes(error: ChiasmError) -> bool:
    """Whether another try, or another target, might do better."""
    return isinstance(error, GeneratorUnreachable | GeneratorFailed) and not isinstance(
        error, TimedOut
    )


def _wait(error: ChiasmError, retry: int, *, last: bool, others: bool) -> float | None:
    """Seconds until the same target is asked again; None: it is not."""
    if last or isinstance(error, ProviderKeyRefused | InvalidRequest):
        return None
    pause = min(_FIRST_PAUSE * 2.0**retry, _LONGEST_PAUSE) * random.uniform(0.5, 1.5)
    if isinstance(error, ProviderBusy):
        if others or (error.retry_after or 0.0) > _LONGEST_RETRY_AFTER:
            return None
        return max(pause, error.retry_after or 0.0)
    return pause


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value


def _whole(events: Sequence[Event]) -> bool:
    """Whether an answer came to a good end: a filter's may be another one tomorrow."""
    return (
        bool(events)
        and isinstance(events[-1], Completed)
        and not any(
            isinstance(event, Finished) and event.reason == "content_filter" for event in events
        )
    )


# Hedging ----------------------------------------------------------------------------------------

_Said = Event | BaseException | None


class _Race:
    """Several targets at the same question; whoever says the first word goes on alone."""

    def __init__(self) -> None:
        self._tasks: dict[Target, asyncio.Task[None]] = {}
        self._queues: dict[Target, asyncio.Queue[_Said]] = {}
        self._first: asyncio.Queue[Target] = asyncio.Queue()
        self._failed: list[BaseException] = []

    def start(self, target: Target, events: AsyncGenerator[Event]) -> None:
        """Let it run."""
        self._queues[target] = asyncio.Queue()
        self._tasks[target] = asyncio.create_task(self._run(target, events))

    async def _run(self, target: Target, events: AsyncGenerator[Event]) -> None:
        queue, begun = self._queues[target], False
        try:
            async with aclosing(events):
                async for event in events:
                    queue.put_nowait(event)
                    if not begun:
                        begun = True
                        self._first.put_nowait(target)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)
            if not begun:
                self._failed.append(error)
                if len(self._failed) == len(self._tasks):
                    self._first.put_nowait(target)

    async def first(self, seconds: float | None) -> Target | None:
        """Who spoke first, or who failed last when all have; None if that takes longer."""
        try:
            async with asyncio.timeout(seconds):
                winner = await self._first.get()
        except TimeoutError:
            return None
        for target, task in self._tasks.items():
            if target != winner:
                task.cancel()
        return winner

    async def rest(self, target: Target) -> AsyncGenerator[Event]:
        """Everything that it says."""
        while (said := await self._queues[target].get()) is not None:
            if isinstance(said, BaseException):
                raise said
            yield said

    async def close(self) -> None:
        """End whatever still runs."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
