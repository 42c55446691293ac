"""What models behind OpenAI's two APIs have in common; see `openai_chat`, `openai_responses`."""

from __future__ import annotations

import asyncio
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import ClassVar

from chiasm.generation.providers.blocking import without_loop
from chiasm.generation.providers.chat_messages import Encode, check_parts, goes_as_it_is, sender
from chiasm.generation.providers.openai_asking import Reader, ask
from chiasm.generation.providers.openai_client import connected, disconnect, is_openais_own
from chiasm.generation.providers.patience import Clock, Patience, Silence
from chiasm.generation.request import Ability, Event, Request, check_abilities
from chiasm.media.limits import Limits

PLACES = 64


class OpenAIGenerator(ABC):
    """A model behind one of OpenAI's APIs. Safe to use from several threads and tasks."""

    abilities: ClassVar[frozenset[Ability]]
    path: ClassVar[str]
    """Of the API, below the base URL."""
    pictures_from_tools: ClassVar[bool]

    def __init__(
        self,
        *,
        model: str,
        base_url: str | None = None,
        key: str | None = None,
        name: str | None = None,
        patience: Patience | None = None,
        context: int = 0,
        headers: Mapping[str, str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Blocks for a second or two; asks nobody.

        base_url: with its `/v1`; None is OpenAI's. key: None where the server wants none. name:
        what to call the model; None is its own. context: tokens of prompt and answer; 0: the
        provider refuses by itself what is too long. headers: sent with every request. limits: of
        pictures that must be decoded before they are sent.

        Raises ConfigurationError for an address that is none, and where the SDK is missing.
        """
        self._patience = patience or Patience()
        self._connections = connected(base_url, key, headers or {}, self._patience.connect)
        self._encode = sender(limits or Limits())
        self.model = model
        self.own = is_openais_own(self._connections.host)
        self.name = name or model
        self.context = context
        self.sees = True  # a model that does not says so by itself
        self.places = PLACES
        facts = f"chiasm-openai-1\n{self.path}\n{self._connections.address}\n{model}\n"
        self.digest = hashlib.sha256(facts.encode()).hexdigest()

    @abstractmethod
    def body(self, request: Request, encode: Encode) -> list[bytes]:
        """What is posted, in pieces. Encodes pictures: may take a while."""

    @abstractmethod
    def reader(self, request: Request, started: float, prepared: float) -> Reader:
        """What makes events of the answer."""

    def close(self) -> None:
        """Close the connections, if no other generator uses them."""
        disconnect(self._connections)

    async def stream(self, request: Request) -> AsyncGenerator[Event]:
        """As `Generator.stream`. Closing the iterator closes the connection.

        Raises Unsupported and InvalidRequest before anything is sent, and what `ask` raises.
        """
        started = time.perf_counter()
        check_abilities(request, self.abilities, self.name)
        check_parts(request.messages, pictures_from_tools=self.pictures_from_tools, model=self.name)
        pictures = [part for message in request.messages for part in message.image_parts]
        if all(map(goes_as_it_is, pictures)):
            pieces = self.body(request, self._encode)
        else:
            pieces = await asyncio.to_thread(self.body, request, self._encode)
        reader = self.reader(request, started, time.perf_counter() - started)
        silence = Silence(self._patience, Clock.until(started, request.deadline), reader)
        answer = ask(self._connections, self.path, pieces, reader, silence, self.name)
        async with aclosing(answer) as events:
            async for event in events:
                yield event

    def run(self, request: Request) -> Iterator[Event]:
        """The same without an event loop; blocks between events."""
        return without_loop(self.stream(request), self._connections.leave)
