"""What a server sends while it answers: server-sent events, or one JSON object and no stream.

The format is WHATWG's (HTML Living Standard, section 9.2.6), read from bytes as they come. An
`error:` field, which old llama.cpp servers send, is taken for an event of that name.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import pydantic_core

from chiasm.errors import GeneratorFailed

MOST_BYTES = 64 * 1024 * 1024
"""Of one event, or of an answer in one piece."""

Parse = Callable[[], dict[str, Any]]
"""Gives an object; raises GeneratorFailed for what is no JSON object."""

Wait = Callable[[Awaitable[bytes | None]], Awaitable[bytes | None]]
_DONE = b"[DONE]"
_BOM = b"\xef\xbb\xbf"


class EventDecoder:
    """Takes bytes, gives (name, data) of each event that is whole."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The events that end in these bytes. Raises GeneratorFailed for one without end."""
        text = self._rest + data
        if b"\r" in text:
            # A line end may be cut in two: its first half waits for the second.
            text, held = (text[:-1], b"\r") if text.endswith(b"\r") else (text, b"")
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        else:
            held = b""
        *lines, rest = text.split(b"\n")
        self._rest = rest + held
        events = [event for line in lines if (event := self._line(line)) is not None]
        if len(self._rest) + self._size > MOST_BYTES:
            raise no_answer()
        return events

    def end(self) -> list[tuple[bytes, bytes]]:
        """What was left when the stream ended without an empty line."""
        rest, self._rest = self._rest.rstrip(b"\r"), b""
        return [event for line in (rest, b"") if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> tuple[bytes, bytes] | None:
        if not line:
            name, data = self._name, b"\n".join(self._data)
            self._name, self._data, self._size = b"", [], 0
            return (name, data) if data else None
        field, _, value = line.removeprefix(_BOM).partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value)
        elif field == b"event":
            self._name = value
        elif field == b"error":
            self._name = field
            self._data.append(value)
        return None


async def read_objects(chunks: AsyncIterator[bytes], wait: Wait) -> AsyncGenerator[dict[str, Any]]:
    """The JSON objects of an answer, one after the other; see `read_batches`."""
    async with aclosing(read_batches(chunks, wait)) as batches:
        async for batch in batches:
            for each in batch:
                yield each()


async def read_batches(chunks: AsyncIterator[bytes], wait: Wait) -> AsyncGenerator[list[Parse]]:
    """The JSON objects of an answer, those together that came together, until it says that it is
    done or has no more. Each is parsed when it is called.

    wait: awaits the next bytes with as much patience as there is. An event that is called an error
    comes as {"error": …} even where its server leaves that word out. Raises GeneratorFailed for
    what is no JSON object.
    """
    decoder = EventDecoder()
    start = b""
    streamed = False
    while (data := await wait(_next(chunks))) is not None:
        if not streamed:
            start = (start + data).lstrip()
            if start.startswith(b"{"):
                if len(start) > MOST_BYTES:
                    raise no_answer()
                continue
            data, streamed = start, bool(start)
        batch, done = _before_the_end(decoder.feed(data))
        if batch:
            yield batch
        if done:
            return
    if not streamed and start:
        yield [partial(_object, b"", start)]
    batch, _ = _before_the_end(decoder.end())
    if batch:
        yield batch


def _before_the_end(events: list[tuple[bytes, bytes]]) -> tuple[list[Parse], bool]:
    """What comes before the word that ends a stream, and whether that was there."""
    batch: list[Parse] = []
    for name, text in events:
        if text == _DONE:
            return batch, True
        batch.append(partial(_object, name, text))
    return batch, False


def no_answer() -> GeneratorFailed:
    """The error for bytes that are no part of an answer."""
    return GeneratorFailed("The model's server sent what is no part of an answer.")


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)


def _object(name: bytes, text: bytes) -> dict[str, Any]:
    try:
        value = pydantic_core.from_json(text)
    except (ValueError, RecursionError):
        raise no_answer() from None
    if not isinstance(value, dict):
        raise no_answer()
    return {"error": value} if name == b"error" and "error" not in value else value
