"""Answers by OpenAI's Responses API, from OpenAI or from any server that speaks the same."""

from __future__ import annotations

from typing import ClassVar

from chiasm.generation.providers.chat_messages import Encode
from chiasm.generation.providers.openai_generator import OpenAIGenerator
from chiasm.generation.providers.responses_answer import ResponseReader
from chiasm.generation.providers.responses_input import responses_body
from chiasm.generation.request import Ability, Request


class OpenAIResponses(OpenAIGenerator):
    """A model behind `/responses`, of whose answers nothing is kept there."""

    abilities: ClassVar[frozenset[Ability]] = frozenset(
        ("effort", "logprobs", "schema", "temperature", "tools", "top_p")
    )
    place: ClassVar[str] = "responses"
    pictures_from_tools = True

    def body(self, request: Request, encode: Encode) -> list[bytes]:
        """See `HostedGenerator.body`."""
        return responses_body(request, self.model, encode)

    def reader(self, request: Request, started: float, prepared: float) -> ResponseReader:
        """See `HostedGenerator.reader`."""
        return ResponseReader(request, self.name, started, prepared)
