"""What models of all vendors have in common; how each is spoken to, its own module says."""

from __future__ import annotations

import asyncio
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, ClassVar

from chiasm.errors import ChiasmError, InvalidRequest
from chiasm.generation.providers.asking import Reader, ask
from chiasm.generation.providers.blocking import without_loop
from chiasm.generation.providers.chat_messages import Encode, check_parts, goes_as_it_is, sender
from chiasm.generation.providers.connections import Connections, connected, disconnect
from chiasm.generation.providers.patience import Clock, Patience, Silence
from chiasm.generation.request import Ability, Event, Request, check_abilities
from chiasm.media.limits import Limits

PLACES = 64


class HostedGenerator(ABC):
    """A model at a vendor, or behind a server that speaks one's API.

    Safe to use from several threads and tasks.
    """

    abilities: ClassVar[frozenset[Ability]]
    pictures_from_tools: bool
    """Whether the result of a tool may hold pictures."""
    most_image_bytes: ClassVar[int | None] = None
    """Of one picture's base64, beyond which it is compressed; None: the vendor says nothing."""

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

        base_url: as the class says; None is the vendor's own. key: None where the server wants
        none. name: what to call the model; None is its own. context: tokens of prompt and answer;
        0: the vendor refuses by itself what is too long. headers: sent with every request. limits:
        of pictures that must be decoded before they are sent.

        Raises ConfigurationError for an address that is none, and where the SDK is missing.
        """
        self._patience = patience or Patience()
        self._connections = connections = connected(
            type(self).connect, base_url, key, headers or {}, self._patience.connect
        )
        self._encode = sender(limits or Limits(), self.most_image_bytes)
        self.model = model
        self.name = name or model
        self.context = context
        self.sees = True  # a model that does not says so by itself
        self.places = PLACES
        facts = f"chiasm-hosted-1\n{type(self).__name__}\n{connections.address}\n{model}\n"
        self.digest = hashlib.sha256(facts.encode()).hexdigest()

    @staticmethod
    @abstractmethod
    def connect(
        base_url: str | None, key: str | None, headers: Mapping[str, str], seconds: float, /
    ) -> Connections:
        """Open the vendor's connections: see `connections.Connect`."""

    @abstractmethod
    def path(self, request: Request) -> str:
        """Where it is posted, below the API's address."""

    @abstractmethod
    def body(self, request: Request, encode: Encode) -> list[bytes]:
        """What is posted, in pieces. Encodes pictures: may take a while."""

    @abstractmethod
    def reader(self, request: Request, started: float, prepared: float) -> Reader:
        """What makes events of the answer."""

    @abstractmethod
    def refusal(
        self, status: int | None, error: Mapping[str, Any], headers: Mapping[str, str]
    ) -> ChiasmError:
        """See `asking.Refusal`."""

    def headers(self, request: Request) -> Mapping[str, str]:
        """Of this request alone."""
        return {}

    def check_request(self, request: Request) -> None:
        """Raise Unsupported or InvalidRequest for what this model cannot do."""
        check_abilities(request, self.abilities, self.name)
        check_parts(request.messages, pictures_from_tools=self.pictures_from_tools, model=self.name)

    def close(self) -> None:
        """Close the connections, if no other generator uses them."""
        disconnect(self._connections)

    async def stream(self, request: Request) -> AsyncGenerator[Event]:
        """As `Generator.stream`. Closing the iterator closes the connection.

        Raises Unsupported and InvalidRequest before anything is sent, and what `ask` raises.
        """
        started = time.perf_counter()
        self.check_request(request)
        pictures = [part for message in request.messages for part in message.image_parts]
        if all(goes_as_it_is(part, self.most_image_bytes) for part in pictures):
            pieces = self.body(request, self._encode)
        else:
            pieces = await asyncio.to_thread(self.body, request, self._encode)
        reader = self.reader(request, started, time.perf_counter() - started)
        silence = Silence(self._patience, Clock.until(started, request.deadline), reader)
        path, headers = self.path(request), self.headers(request)
        post = partial(self._connections.post, path, pieces, headers)
        answer = ask(post, reader, silence, self.refusal, self.name)
        try:
            async with aclosing(answer) as events:
                async for event in events:
                    yield event
        except InvalidRequest as error:
            self._connections.private.hide(error)
            raise

    def run(self, request: Request) -> Iterator[Event]:
        """The same without an event loop; blocks between events."""
        return without_loop(self.stream(request), self._connections.leave)
