"""A question by HTTP to a server of OpenAI's APIs: sent, waited for, read, and let go of."""

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
    Sequence,
)
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Protocol

from chiasm.errors import ChiasmError, GeneratorFailed, GeneratorUnreachable
from chiasm.generation.providers.event_stream import read_objects
from chiasm.generation.providers.openai_client import (
    Connections,
    never_reached,
    transport_errors,
)
from chiasm.generation.providers.patience import Progress, Silence
from chiasm.generation.providers.refusals import error_in, refused, status_in
from chiasm.generation.request import Completed, Event

if TYPE_CHECKING:
    import httpx2

_LONGEST_REFUSAL = 64 * 1024  # bytes of an error that are read
_DRAIN_SECONDS = 0.2


class Reader(Progress, Protocol):
    """Takes the objects of one answer, gives events."""

    @property
    def whole(self) -> bool: ...

    def read(self, chunk: Mapping[str, Any], /) -> Iterator[Event]: ...

    def completed(self) -> Completed: ...


async def ask(
    connections: Connections,
    path: str,
    pieces: Sequence[bytes],
    reader: Reader,
    silence: Silence,
    model: str,
) -> AsyncGenerator[Event]:
    """The events of one answer, `Completed` last. Closing the iterator closes the connection.

    model: what to call it in messages. Raises GeneratorUnreachable and its kinds, GeneratorFailed,
    TimedOut, ContextExceeded, ContentRefused, UnknownModel and InvalidRequest.
    """
    try:
        response = await silence.wait(connections.post(path, pieces))
        async with aclosing(response):
            if response.status_code != 200:
                raise await _refusal(response, silence.wait, model)
            chunks = response.aiter_bytes()
            async with aclosing(chunks), aclosing(read_objects(chunks, silence.wait)) as objects:
                async for said in objects:
                    if said.get("error"):
                        error = error_in(said)
                        raise refused(status_in(error), error, model)
                    for event in reader.read(said):
                        yield event
                await _drain(chunks)
    except transport_errors() as error:
        raise _broken(error, model) from None
    if not reader.whole:
        raise GeneratorFailed(f"The provider of {model} ended before its answer did.")
    yield reader.completed()


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read what follows the end of the answer, so that the connection can be used again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in chunks:
                pass


async def _refusal(
    response: httpx2.Response, wait: Callable[[Awaitable[Any]], Awaitable[Any]], model: str
) -> ChiasmError:
    text = b""
    async with aclosing(response.aiter_bytes()) as chunks:
        while (data := await wait(anext(chunks, None))) is not None:
            text += data
            if len(text) > _LONGEST_REFUSAL:
                break
    try:
        error = error_in(json.loads(text))
    except ValueError:
        error = {}
    return refused(response.status_code, error, model, headers=response.headers)


def _broken(error: Exception, model: str) -> ChiasmError:
    if never_reached(error):
        return GeneratorUnreachable(
            f"The provider of {model} cannot be reached.", hint="Try again in a moment."
        )
    return GeneratorFailed(
        f"The connection to the provider of {model} broke ({type(error).__name__})."
    )
