"""Answers by vLLM servers, over their OpenAI-shaped API.

An answer is a connection of its own: it is closed when nobody listens any more, by which vLLM
learns that it may stop. Pictures travel as PNG made from their pixels, whatever file they came
from. What a server says about its insides goes to the log; callers hear fixed sentences, and vLLM's
own words only where it refuses a request as the caller's fault.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import ssl
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterator,
    Mapping,
)
from contextlib import aclosing
from functools import cached_property
from typing import TYPE_CHECKING, Any

import httpx

from chiasm.errors import (
    ChiasmError,
    ContextExceeded,
    GeneratorFailed,
    GeneratorUnreachable,
    InvalidRequest,
    UnsupportedCheckpoint,
)
from chiasm.generation.messages import check_conversation, images_of
from chiasm.generation.providers.address import Address
from chiasm.generation.providers.cluster import CHECK_SECONDS, Cluster, Server
from chiasm.generation.providers.patience import Clock, Patience
from chiasm.generation.providers.vllm_probe import KEY_VARIABLE, VLLMProbe
from chiasm.generation.providers.wire import ABILITIES, AnswerReader, chat_body
from chiasm.generation.request import Event, Request, check_abilities

if TYPE_CHECKING:
    from chiasm.models.vision_language import ImageReader

log = logging.getLogger("chiasm.generation")

_MOST_BROKEN = (
    2  # servers that a request is given to and fail: it may be the request that breaks them
)
_LONGEST_MESSAGE = 300
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
    ) -> None:
        """Connects. Raises GeneratorUnreachable if no server serves the model."""
        self._patience = patience or Patience()
        self._ssl = ssl.create_default_context()
        key = os.environ.get(KEY_VARIABLE)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
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
        check_conversation(request.messages)
        images = images_of(request.messages)
        if images and not self.sees:
            raise InvalidRequest(
                f"{self.name} reads text alone, and there is a picture in the conversation.",
                hint="Ask a vision-language model.",
                param="messages",
            )
        body, picture = await asyncio.to_thread(_encoded, request, self.name, self.context)
        prepared = time.perf_counter() - started
        clock = Clock.until(started, request.deadline)
        broken: list[GeneratorFailed] = []
        for server in self._cluster.order(picture):
            begun = False
            reader = AnswerReader(request, started, prepared)
            try:
                with self._cluster.asking(server):
                    async with aclosing(self._events(server, body, reader, clock)) as events:
                        async for event in events:
                            begun = True
                            yield event
            except GeneratorUnreachable as error:
                self._cluster.failed(server, error)
                if begun:
                    raise GeneratorFailed("The model's server gave the answer up.") from None
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
        events = self.stream(request)

        async def following() -> Event | None:
            return await anext(events, None)

        with asyncio.Runner() as runner:
            try:
                while (event := runner.run(following())) is not None:
                    yield event
            finally:
                runner.run(events.aclose())

    async def _events(
        self, server: Server, body: bytes, reader: AnswerReader, clock: Clock
    ) -> AsyncGenerator[Event]:
        """One server's answer. Raises GeneratorUnreachable where it has not begun to work."""
        wait = self._patience
        # A proxy for the way out has no business between these servers: trust_env.
        async with httpx.AsyncClient(
            verify=self._ssl, timeout=httpx.Timeout(None, connect=wait.connect), trust_env=False
        ) as client:
            asked = client.build_request(
                "POST",
                f"{server.url}/v1/chat/completions",
                content=body,
                headers={**self._headers, "content-type": "application/json"},
            )
            try:
                response = await clock.wait(client.send(asked, stream=True), wait.first_token)
                async with aclosing(response):
                    if response.status_code != 200:
                        await clock.wait(response.aread(), wait.between)
                        raise _refused(response.status_code, _json(response.text), server.url)
                    async for chunk in _chunks(
                        response,
                        clock,
                        lambda: wait.between if reader.begun else wait.first_token,
                    ):
                        if "error" in chunk:
                            raise _refused(_code(chunk), chunk, server.url)
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
        images = images_of(reader.request.messages)
        if not images or reader.states_image_tokens:
            return
        pictures = await asyncio.to_thread(lambda: self._reader)
        if pictures is not None:
            reader.image_tokens = sum(pictures.count(*image.size) for image in images)
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


def _encoded(request: Request, model: str, context: int) -> tuple[bytes, str | None]:
    """What is posted, and the first picture's digest: for a large picture both take a while."""
    images = images_of(request.messages)
    body = json.dumps(chat_body(request, model, context)).encode()
    return body, images[0].digest if images else None


async def _chunks(
    response: httpx.Response, clock: Clock, seconds: Callable[[], float]
) -> AsyncGenerator[dict[str, Any]]:
    """The objects of a stream of server-sent events, until it says that it is done."""
    lines = response.aiter_lines()
    while (line := await clock.wait(_next(lines), seconds())) is not None:
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if line.startswith("data:"):
            chunk = _json(data)
            if chunk is None:
                raise GeneratorFailed("The model's server sent what is no part of an answer.")
            yield chunk


async def _next(lines: AsyncIterator[str]) -> str | None:
    return await anext(lines, None)


def _json(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


# What goes wrong --------------------------------------------------------------------------------


def _nobody() -> GeneratorUnreachable:
    return GeneratorUnreachable(
        "No server that answers questions can be reached.", hint="Try again in a moment."
    )


def _code(chunk: Mapping[str, Any]) -> int:
    """The status that an error in the middle of a stream would have had at its beginning."""
    error = chunk["error"]
    code = error.get("code") if isinstance(error, Mapping) else None
    return code if isinstance(code, int) else 500


def _refused(status: int, body: Mapping[str, Any] | None, url: str) -> ChiasmError:
    """The error that an answer of another status than 200 means."""
    error = (body or {}).get("error")
    said = error if isinstance(error, Mapping) else {}
    if status in (401, 403):
        return GeneratorUnreachable(
            f"{url} refuses the key.", hint=f"Put the right one into {KEY_VARIABLE}."
        )
    if status == 404:
        return GeneratorUnreachable(f"{url} does not serve the model any more.")
    if status in (429, 503):
        return GeneratorUnreachable(f"{url} takes no more requests.")
    if not 400 <= status < 500:
        return GeneratorFailed(f"The model's server failed (status {status}).")
    message = _shown(said.get("message"))
    kind = ContextExceeded if _too_long(said) else InvalidRequest
    return kind(f"The model's server refuses the request: {message}", param="messages")


def _too_long(said: Mapping[str, Any]) -> bool:
    return said.get("param") == "input_tokens" or "context length" in str(said.get("message"))


def _shown(message: object) -> str:
    """A server's own words, short and printable."""
    text = "".join(
        letter for letter in str(message or "it does not say why.") if letter.isprintable()
    )
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"
