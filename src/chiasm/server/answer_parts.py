"""An answer in parts: texts, refusals and calls of tools that begin, grow and end.

A generator speaks of pieces; the shapes of `/v1/responses` and `/v1/messages` speak of parts, each
of which is opened and closed. Both are written from here, whole and streamed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from chiasm.errors import GeneratorFailed
from chiasm.generation import Completed, Finished, RefusalDelta, TextDelta, ToolCallDelta

if TYPE_CHECKING:
    from chiasm.generation import Event, TokenLogprob, Usage
    from chiasm.generation.request import Reason

Kind = Literal["text", "refusal", "call"]


@dataclass
class Part:
    """One part of an answer, as it grows. index: its place in the answer.

    call: which call of the answer, from 0. id, name: a call's own.
    text: words, or a call's arguments as JSON. tokens: where log-probabilities were asked for.
    """

    kind: Kind
    index: int
    call: int = -1
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.pieces)


@dataclass(frozen=True)
class Begins:
    """A part is opened; nothing is in it yet."""

    part: Part


@dataclass(frozen=True)
class Grows:
    """The next piece of the part that is open."""

    part: Part
    piece: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Ends:
    """A part is complete."""

    part: Part


Step = Begins | Grows | Ends


class Parts:
    """What an answer's events come to. One choice: these shapes have no room for more.

    all: the parts so far. reason, stop: why it ended. usage: once it is completed.
    """

    def __init__(self) -> None:
        self.all: list[Part] = []
        self.reason: Reason = "stop"
        self.stop: str | None = None
        self.usage: Usage | None = None
        self._open: Part | None = None

    def take(self, event: Event) -> Iterator[Step]:
        """The steps that an event means. Take all of them."""
        if isinstance(event, TextDelta):
            if event.text or event.tokens:
                yield from self._grow("text", event.text, event.tokens)
        elif isinstance(event, RefusalDelta):
            if event.text:
                yield from self._grow("refusal", event.text)
        elif isinstance(event, ToolCallDelta):
            yield from self._call(event)
        elif isinstance(event, Finished):
            self.reason, self.stop = event.reason, event.stop
            yield from self._close()
        elif isinstance(event, Completed):
            self.usage = event.usage
        else:  # Restarted: only where nothing of it has been sent yet
            self.all.clear()
            self._open = None

    def _grow(self, kind: Kind, text: str, tokens: tuple[TokenLogprob, ...] = ()) -> Iterator[Step]:
        part = self._open
        if part is None or part.kind != kind:
            yield from self._close()
            part = yield from self._begin(Part(kind, len(self.all)))
        part.pieces.append(text)
        part.tokens.extend(tokens)
        yield Grows(part, text, tokens)

    def _call(self, event: ToolCallDelta) -> Iterator[Step]:
        part = self._open
        if part is None or part.call != event.number:
            yield from self._close()
            if any(each.call == event.number for each in self.all):
                raise GeneratorFailed("The model came back to a call that it had finished.")
            part = yield from self._begin(
                Part("call", len(self.all), event.number, event.id, event.name)
            )
        if event.arguments:
            part.pieces.append(event.arguments)
            yield Grows(part, event.arguments)

    def _begin(self, part: Part) -> Generator[Step, None, Part]:
        self.all.append(part)
        self._open = part
        yield Begins(part)
        return part

    def _close(self) -> Iterator[Step]:
        part, self._open = self._open, None
        if part is not None:
            yield Ends(part)


async def gather(events: AsyncGenerator[Event]) -> Parts:
    """The whole answer."""
    parts = Parts()
    async with aclosing(events) as taken:
        async for event in taken:
            for _ in parts.take(event):
                pass
    return parts


# What shapes have in common ---------------------------------------------------------------------


def beyond_vendors(usage: Usage) -> dict[str, Any]:
    """What no vendor's `usage` has a place for: pictures, cost, compute and seconds."""
    return {
        "images": usage.images,
        "cost": None if usage.cost is None else float(usage.cost),
        "estimated": usage.estimated,
        "compute": {"vision_flops": usage.vision_flops, "language_flops": usage.language_flops},
        "seconds": {stage: round(took, 6) for stage, took in usage.seconds.items()},
    }


def token_object(token: TokenLogprob) -> dict[str, Any]:
    """A token in OpenAI's shape, without those that could have stood in its place."""
    # JSON has no minus infinity; OpenAI writes −9999 for what cannot come.
    return {
        "token": token.token,
        "logprob": max(token.logprob, -9999.0),
        "bytes": list(token.bytes),
    }


def tokens_of(tokens: tuple[TokenLogprob, ...] | list[TokenLogprob]) -> list[dict[str, Any]]:
    """Tokens in OpenAI's shape, each with those that could have stood in its place."""
    return [
        {**token_object(each), "top_logprobs": [token_object(other) for other in each.top]}
        for each in tokens
    ]
