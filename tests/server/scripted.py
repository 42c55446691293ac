"""A model that says what a test wants it to say, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence

from chiasm.generation import (
    Completed,
    Event,
    Finished,
    Request,
    TextDelta,
    ToolCallDelta,
    Usage,
)

USAGE = Usage(
    text_tokens=40,
    image_tokens=20,
    cached_tokens=16,
    written_tokens=4,
    answer_tokens=7,
    thought_tokens=2,
    images=1,
    vision_flops=11,
    language_flops=13,
    seconds={"first_token": 0.25},
)
SAID: list[Event] = [TextDelta(0, "A red "), TextDelta(0, "square."), Finished(0, "stop")]
WANTS_TOOLS: list[Event] = [
    TextDelta(0, "Let me look."),
    ToolCallDelta(0, 0, id="call_1", name="zoom", arguments=""),
    ToolCallDelta(0, 0, arguments='{"x": 1, '),
    ToolCallDelta(0, 0, arguments='"y": 2}'),
    ToolCallDelta(0, 1, id="call_2", name="crop", arguments="{}"),
    Finished(0, "tool_calls"),
]


class ScriptedGenerator:
    """script: the events of every answer; an exception among them is raised. Usage is added."""

    name = "scripted"
    digest = "5" * 64
    context = 4096
    sees = True
    places = 4

    def __init__(self) -> None:
        self.script: Sequence[Event | Exception] = SAID
        self.asked: list[Request] = []

    async def stream(self, request: Request) -> AsyncGenerator[Event]:
        """The script."""
        self.asked.append(request)
        for event in self.script:
            if isinstance(event, Exception):
                raise event
            yield event
        yield Completed(USAGE)

    def run(self, request: Request) -> Iterator[Event]:
        """Not asked for by a server."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to let go of."""
