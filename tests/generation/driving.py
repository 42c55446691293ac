"""An engine without its thread: questions put to it, and its steps taken one by one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from chiasm.generation import Completed, Event, Finished, Request, TextDelta, TokenLogprob, Usage
from chiasm.generation.engine.engine import Engine
from chiasm.generation.engine.one_at_a_time import OneAtATime
from chiasm.generation.engine.question import Question, Said

AnyEngine = Engine | OneAtATime


@dataclass
class Heard:
    """What an engine has said of one question. ended: it will say no more."""

    events: list[Event] = field(default_factory=list)
    error: BaseException | None = None
    ended: bool = False
    question: Question | None = None

    def say(self, said: Said) -> None:
        assert not self.ended, f"{said!r} came after the end"
        if said is None or isinstance(said, BaseException):
            self.error, self.ended = said, True
        else:
            self.events.append(said)

    def cancel(self) -> None:
        assert self.question is not None
        self.question.cancelled.set()

    @property
    def texts(self) -> list[str]:
        """Of all choices."""
        choices = sorted({event.choice for event in self.events if isinstance(event, Finished)})
        deltas = [event for event in self.events if isinstance(event, TextDelta)]
        return ["".join(d.text for d in deltas if d.choice == choice) for choice in choices]

    @property
    def text(self) -> str:
        """Of the first choice."""
        return self.texts[0]

    @property
    def reasons(self) -> list[str]:
        ends = [event for event in self.events if isinstance(event, Finished)]
        return [event.reason for event in sorted(ends, key=lambda end: end.choice)]

    @property
    def logprobs(self) -> list[list[TokenLogprob]]:
        """Of all choices."""
        deltas = [event for event in self.events if isinstance(event, TextDelta)]
        choices = range(len(self.reasons))
        return [[t for d in deltas if d.choice == choice for t in d.tokens] for choice in choices]

    @property
    def usage(self) -> Usage:
        last = self.events[-1]
        assert isinstance(last, Completed)
        return last.usage


def put(engine: AnyEngine, request: Request) -> Heard:
    """Ask, and let nothing happen yet. Raises what a request is refused with."""
    heard = Heard()
    heard.question = engine.read(request, arrived=time.perf_counter(), say=heard.say)
    engine.add(heard.question)
    return heard


def finish(engine: AnyEngine, *, most: int = 20_000) -> int:
    """Step until there is nothing to do; how many steps that took."""
    steps = 0
    while not engine.idle:
        engine.step()
        steps += 1
        assert steps < most, "it goes on for ever"
    return steps


def ask(engine: AnyEngine, request: Request) -> Heard:
    """Ask and hear the whole answer. Raises the error it ended with."""
    heard = put(engine, request)
    finish(engine)
    assert heard.ended
    if heard.error is not None:
        raise heard.error
    return heard
