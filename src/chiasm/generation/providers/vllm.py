"""Answers by vLLM servers, over their OpenAI-shaped API.

An answer is a connection of its own: it is closed when nobody listens any more, by which vLLM
learns that it may stop. Of pictures nothing travels but their pixels (`chiasm.media.sending`). What
a server says about its insides goes to the log; callers hear fixed sentences, and vLLM's own words
only where it refuses a request as the caller's fault.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import ssl
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from functools import cached_property
from typing import TYPE_CHECKING, Any

import httpx

from chiasm.errors import (
    ChiasmError,
    GeneratorFailed,
    GeneratorUnreachable,
    InvalidRequest,
    UnsupportedCheckpoint,
)
from chiasm.generation.messages import images_of
from chiasm.generation.providers.address import Address
from chiasm.generation.providers.blocking import without_loop
from chiasm.generation.providers.chat_answer import AnswerReader
from chiasm.generation.providers.cluster import CHECK_SECONDS, Cluster, Server
from chiasm.generation.providers.event_stream import read_objects
from chiasm.generation.providers.openai_refusals import refused, status_in
from chiasm.generation.providers.patience import Clock, Patience, Silence
from chiasm.generation.providers.private import Private
from chiasm.generation.providers.refusals import error_in
from chiasm.generation.providers.vllm_probe import KEY_VARIABLE, VLLMProbe
from chiasm.generation.providers.wire import ABILITIES, chat_body, check_messages
from chiasm.generation.request import Event, Request, check_abilities
from chiasm.media.limits import Limits

if TYPE_CHECKING:
    from chiasm.models.vision_language import ImageReader

log = logging.getLogger("chiasm.generation")

_MOST_BROKEN = (
    2  # servers that a request is given to and fail: it may be the request that breaks them
)
PLACES = 64
"""Questions for each server; vLLM takes more at once, but here their pictures wait on the disk."""


class VLLMGenerator:
    """A model that vLLM servers run. Safe to use from several threads and tasks."""

    def __init__(
        self,
        address: Address,
        *,
        patience: Patience | None = None,
        check_seconds: float = CHECK_SECONDS,
        key: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Connects. key: None looks into the environment for VLLM_API_KEY.

        limits: of pictures that must be decoded before they are sent.
        Raises GeneratorUnreachable if no server serves the model.
        """
        self._patience = patience or Patience()
        self._limits = limits or Limits()
        self._ssl = ssl.create_default_context()
        key = key or os.environ.get(KEY_VARIABLE)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._private = Private(self._headers, address.urls)
        counted = len(address.urls) > 1
        probe = VLLMProbe(address.model, self._headers, self._ssl, counted=counted)
        self._cluster = Cluster(address.urls, probe, every=check_seconds)
        facts = self._cluster.connect()
        self._warned = False
        self.name = facts.model
        self._root = facts.root
        self.digest = hashlib.sha256(
            f"chiasm-vllm-1\n{facts.model}\n{facts.root}\n{facts.context}\n".encode()
        ).hexdigest()
        self._cluster.watch()

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together, on every server."""
        return self._cluster.context

    @property
    def sees(self) -> bool:
        """Whether it reads pictures."""
        facts = self._cluster.facts
        return facts is None or facts.sees is not False

    @property
    def places(self) -> int:
        """Questions that are worth asking at once: vLLM has a queue of its own."""
        return PLACES * max(self.usable_servers, 1)

    @property
    def usable_servers(self) -> int:
        """How many may be asked."""
        return sum(server.usable for server in self._cluster.servers)

    @property
    def troubles(self) -> list[ChiasmError]:
        """Why the others may not."""
        return [each.trouble for each in self._cluster.servers if each.trouble is not None]

    def check(self) -> None:
        """Raise GeneratorUnreachable while no server can be asked."""
        if not self.usable_servers:
            raise _nobody()

    def close(self) -> None:
        """Look after the servers no more. Answers under way go on."""
        self._cluster.close()

    # Asking ----------------------------------------------------------------------------------

    async def stream(self, request: Request) -> AsyncGenerator[Event]:
        """As `Generator.stream`. Closing the iterator closes the connection.

        A server that fails before its first token is replaced by another, later no more: an answer
        is never begun anew. Raises GeneratorUnreachable, GeneratorFailed, TimedOut,
        ContextExceeded, and InvalidRequest.
        """
        started = time.perf_counter()
        check_abilities(request, ABILITIES, self.name)
        check_messages(request, self.name)
        images = images_of(request.messages)
        if images and not self.sees:
            raise InvalidRequest(
                f"{self.name} reads text alone, and there is a picture in the conversation.",
                hint="Ask a vision-language model.",
                param="messages",
            )
        body, picture = await asyncio.to_thread(
            _encoded, request, self.name, self.context, self._limits
        )
        prepared = time.perf_counter() - started
        clock = Clock.until(started, request.deadline)
        broken: list[GeneratorFailed] = []
        for server in self._cluster.order(picture):
            begun = False
            reader = AnswerReader(request, started, prepared)
            try:
                with self._cluster.asking(server):
                    silence = Silence(self._patience, clock, reader)
                    async with aclosing(self._events(server, body, reader, silence)) as events:
                        async for event in events:
                            begun = True
                            yield event
            except GeneratorUnreachable as error:
                self._cluster.failed(server, error)
                if begun:
                    raise GeneratorFailed("The model's server gave the answer up.") from None
            except InvalidRequest as error:
                self._private.hide(error)
                raise
            except GeneratorFailed as error:
                log.warning("%s: %s", server.url, error)
                broken.append(error)
                if begun or len(broken) == _MOST_BROKEN:
                    raise
            else:
                await self._count_images(reader)
                yield reader.completed()
                return
        raise broken[0] if broken else _nobody()

    def run(self, request: Request) -> Iterator[Event]:
        """The same without an event loop; blocks between events."""
        return without_loop(self.stream(request))

    async def _events(
        self, server: Server, body: bytes, reader: AnswerReader, silence: Silence
    ) -> AsyncGenerator[Event]:
        """One server's answer. Raises GeneratorUnreachable where it has not begun to work."""
        connect = httpx.Timeout(None, connect=self._patience.connect)
        # A proxy for the way out has no business between these servers: trust_env.
        async with httpx.AsyncClient(verify=self._ssl, timeout=connect, trust_env=False) as client:
            asked = client.build_request(
                "POST",
                f"{server.url}/v1/chat/completions",
                content=body,
                headers={**self._headers, "content-type": "application/json"},
            )
            try:
                response = await silence.wait(client.send(asked, stream=True))
                async with aclosing(response):
                    if response.status_code != 200:
                        await silence.wait(response.aread())
                        error = error_in(_json(response.text))
                        raise _refused(response.status_code, error, server.url, self.name)
                    objects = read_objects(response.aiter_bytes(), silence.wait)
                    async with aclosing(objects) as chunks:
                        async for chunk in chunks:
                            if chunk.get("error"):
                                error = error_in(chunk)
                                raise _refused(status_in(error), error, server.url, self.name)
                            for event in reader.read(chunk):
                                yield event
            except (httpx.ConnectError, httpx.ConnectTimeout):
                raise GeneratorUnreachable(f"{server.url} cannot be reached.") from None
            except httpx.HTTPError as error:
                raise GeneratorFailed(
                    f"The connection to the model's server broke ({type(error).__name__})."
                ) from None
        if not reader.whole:
            raise GeneratorFailed("The model's server ended before its answer did.")

    # Counting --------------------------------------------------------------------------------

    async def _count_images(self, reader: AnswerReader) -> None:
        """Count the pictures' tokens as the checkpoint does, where the server does not say."""
        parts = [part for message in reader.request.messages for part in message.image_parts]
        if not parts or reader.states_image_tokens:
            return
        pictures = await asyncio.to_thread(lambda: self._reader)
        if pictures is not None:
            reader.image_tokens = sum(
                pictures.count(*(part.size or part.image.size)) for part in parts
            )
        elif not self._warned:
            self._warned = True
            log.warning(
                "%s does not say how many tokens pictures take, so they are counted as text; "
                "start vLLM with --enable-prompt-tokens-details",
                self.name,
            )

    @cached_property
    def _reader(self) -> ImageReader | None:
        """How the checkpoint reads pictures, if its folder is on this machine, too."""
        from chiasm.models import catalog, checkpoint

        folder = catalog.local_folder(self._root)
        if folder is None:
            return None
        try:
            return checkpoint.load_image_reader(folder)
        except UnsupportedCheckpoint:
            return None


# What comes over the wire -----------------------------------------------------------------------


def _encoded(
    request: Request, model: str, context: int, limits: Limits
) -> tuple[bytes, str | None]:
    """What is posted, and the first picture's digest: for a large picture both take a while."""
    images = images_of(request.messages)
    return chat_body(request, model, context, limits), images[0].digest if images else None


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


# What goes wrong --------------------------------------------------------------------------------


def _nobody() -> GeneratorUnreachable:
    return GeneratorUnreachable(
        "No server that answers questions can be reached.", hint="Try again in a moment."
    )


def _refused(status: int, error: Mapping[str, Any], url: str, model: str) -> ChiasmError:
    """The error that an answer of another status than 200 means.

    What another server of the cluster might do is GeneratorUnreachable.
    """
    if status in (401, 403):
        return GeneratorUnreachable(
            f"{url} refuses the key.", hint=f"Put the right one into {KEY_VARIABLE}."
        )
    if status == 404:
        return GeneratorUnreachable(f"{url} does not serve the model any more.")
    if status in (408, 409, 429, 503):
        return GeneratorUnreachable(f"{url} takes no more requests.")
    if error.get("param") == "input_tokens":  # so vLLM calls a prompt that is too long
        error = {**error, "code": "context_length_exceeded", "param": "messages"}
    return refused(status, error, model)
