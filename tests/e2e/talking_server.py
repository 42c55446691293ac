"""A server that answers questions, with a small vision-language model of random weights.

What it says makes no sense, but it is said by the real engine: streamed, counted, given up.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx

from chiasm.generation import Completed, Event, NativeGenerator, Request, Usage
from chiasm.server import create_app
from tests.generation.tiny_models import tiny_llava
from tests.server.conftest import ColourEmbedder, LiveServer, make_settings

CONTEXT = 4096
LONG_WINDED = 4  # the seed of a model that does not stop of itself for thousands of tokens


class PacedGenerator(NativeGenerator):
    """Says no more than a test lets it say, and remembers.

    limit: so many events of each stream are let through; None: all.
    given_up: streams that nobody wanted to hear to their end. usage: of the last that was heard.
    """

    limit: int | None = None
    given_up = 0
    usage: Usage | None = None

    async def stream(self, request: Request) -> AsyncGenerator[Event]:
        """As `NativeGenerator.stream`."""
        said, whole = 0, False
        events = super().stream(request)
        try:
            async for event in events:
                while self.limit is not None and said >= self.limit:
                    await asyncio.sleep(0.01)
                said += 1
                if isinstance(event, Completed):
                    self.usage = event.usage
                yield event
            whole = True
        finally:
            await events.aclose()
            self.given_up += not whole


class TalkingServer(LiveServer):
    """uvicorn in a thread, with an embedder that knows colours and a model that talks."""

    def __init__(self, folder: Path, *, talks: bool = True) -> None:
        self.generator: PacedGenerator | None = None
        if talks:
            checkpoint = tiny_llava(folder / "model", context=CONTEXT, seed=LONG_WINDED)
            self.generator = PacedGenerator(checkpoint, name="tiny-llava")
        settings = dataclasses.replace(make_settings(folder), generator="")
        app = create_app(settings, embedder=ColourEmbedder(), generator=self.generator)
        super().__init__(app)

    def ask(self, **body: Any) -> Any:
        """The API's answer, or its error object."""
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=120)
        return answer.json()
