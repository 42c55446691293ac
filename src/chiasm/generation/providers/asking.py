"""A question by HTTP to a provider: sent, waited for, read, and let go of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
)
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Protocol

from chiasm.errors import ChiasmError, GeneratorFailed, GeneratorUnreachable
from chiasm.generation.providers.connections import never_reached, transport_errors
from chiasm.generation.providers.event_stream import Parse, read_batches
from chiasm.generation.providers.patience import Progress, Silence
from chiasm.generation.providers.refusals import error_in
from chiasm.generation.request import Completed, Event, TextDelta

if TYPE_CHECKING:
    import httpx2

_LONGEST_REFUSAL = 64 * 1024  # bytes of an error that are read
_DRAIN_SECONDS = 0.2

Refusal = Callable[[int | None, Mapping[str, Any], Mapping[str, str]], ChiasmError]
"""What an answer means that is none, from its status (None: in the middle of a stream), its error
object and its headers, whose names have small letters."""


class Reader(Progress, Protocol):
    """Takes the objects of one answer, gives events."""

    @property
    def whole(self) -> bool: ...

    def read(self, said: Mapping[str, Any], /) -> Iterator[Event]: ...

    def completed(self) -> Completed: ...


async def ask(
    post: Callable[[], Awaitable[httpx2.Response]],
    reader: Reader,
    silence: Silence,
    refusal: Refusal,
    model: str,
) -> AsyncGenerator[Event]:
    """The events of one answer, `Completed` last. Closing the iterator closes the connection.

    post: sends the question. model: what to call it in messages. Raises GeneratorUnreachable and
    its kinds, GeneratorFailed, TimedOut, ContextExceeded, ContentRefused, UnknownModel and
    InvalidRequest.
    """
    try:
        response = await silence.wait(post())
        async with aclosing(response):
            if response.status_code != 200:
                raise await _refused(response, silence.wait, refusal)
            chunks = response.aiter_bytes()
            async with aclosing(chunks), aclosing(read_batches(chunks, silence.wait)) as batches:
                async for batch in batches:
                    for event in together(_events(batch, reader, refusal)):
                        yield event
                await _drain(chunks)
    except transport_errors() as error:
        raise _broken(error, model) from None
    if not reader.whole:
        raise GeneratorFailed(f"The provider of {model} ended before its answer did.")
    yield reader.completed()


def _events(batch: list[Parse], reader: Reader, refusal: Refusal) -> Iterator[Event]:
    for parse in batch:
        said = parse()
        if said.get("error"):
            raise refusal(None, error_in(said), {})
        yield from reader.read(said)


def together(events: Iterator[Event]) -> Iterator[Event]:
    """The same words in fewer pieces: those of one answer that came at the same time are one.

    Nothing waits for what has not come. What raises does so after what came before.
    """
    words: list[TextDelta] = []
    try:
        for event in events:
            if isinstance(event, TextDelta) and (not words or words[0].choice == event.choice):
                words.append(event)
                continue
            if words:
                yield _joined(words)
                words = []
            if isinstance(event, TextDelta):
                words.append(event)
            else:
                yield event
    except ChiasmError:
        if words:
            yield _joined(words)
        raise
    if words:
        yield _joined(words)


def _joined(words: list[TextDelta]) -> TextDelta:
    if len(words) == 1:
        return words[0]
    tokens = tuple(token for each in words for token in each.tokens)
    return TextDelta(words[0].choice, "".join(each.text for each in words), tokens)


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read what follows the end of the answer, so that the connection can be used again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in chunks:
                pass


async def _refused(
    response: httpx2.Response,
    wait: Callable[[Awaitable[Any]], Awaitable[Any]],
    refusal: Refusal,
) -> ChiasmError:
    text = b""
    async with aclosing(response.aiter_bytes()) as chunks:
        while (data := await wait(anext(chunks, None))) is not None:
            text += data
            if len(text) > _LONGEST_REFUSAL:
                break
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    if isinstance(said, list) and len(said) == 1:  # Gemini's, now and then
        said = said[0]
    return refusal(response.status_code, error_in(said), response.headers)


def _broken(error: Exception, model: str) -> ChiasmError:
    if never_reached(error):
        return GeneratorUnreachable(
            f"The provider of {model} cannot be reached.", hint="Try again in a moment."
        )
    return GeneratorFailed(
        f"The connection to the provider of {model} broke ({type(error).__name__})."
    )
