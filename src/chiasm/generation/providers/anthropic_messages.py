"""Answers by Anthropic's Messages API, from Anthropic or from a server that speaks the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from chiasm.errors import ChiasmError
from chiasm.generation.providers.anthropic_answer import MessageReader
from chiasm.generation.providers.anthropic_client import anthropic_connections
from chiasm.generation.providers.anthropic_input import (
    MOST_IMAGE_BYTES,
    check_request,
    messages_body,
)
from chiasm.generation.providers.anthropic_refusals import refused
from chiasm.generation.providers.chat_messages import Encode
from chiasm.generation.providers.hosted import HostedGenerator
from chiasm.generation.request import Ability, Request, Sampling

_WITH_SAMPLING = {"anthropic-version": "2023-06-01"}
"""Since 2026-10-21 the API has no temperature, top_p and top_k; models before Opus 4.7 still take
them in requests of the version before, and the others say that they do not."""


class AnthropicMessages(HostedGenerator):
    """A model behind `/v1/messages`. Its thoughts are not shown, but counted.

    base_url: what stands before `/v1/messages`.
    """

    connect = staticmethod(anthropic_connections)

    abilities: ClassVar[frozenset[Ability]] = frozenset(
        ("effort", "schema", "stop", "temperature", "tools", "top_k", "top_p")
    )
    pictures_from_tools = True
    most_image_bytes: ClassVar[int | None] = MOST_IMAGE_BYTES

    def path(self, request: Request) -> str:
        """See `HostedGenerator.path`."""
        return "v1/messages"

    def headers(self, request: Request) -> Mapping[str, str]:
        """See `HostedGenerator.headers`."""
        asked, plain = request.sampling, Sampling()
        same = (asked.temperature, asked.top_p, asked.top_k) == (
            plain.temperature,
            plain.top_p,
            plain.top_k,
        )
        return {} if same else _WITH_SAMPLING

    def check_request(self, request: Request) -> None:
        """See `HostedGenerator.check`."""
        super().check_request(request)
        check_request(request, self.name, self.context)

    def body(self, request: Request, encode: Encode) -> list[bytes]:
        """See `HostedGenerator.body`."""
        return messages_body(request, self.model, encode)

    def reader(self, request: Request, started: float, prepared: float) -> MessageReader:
        """See `HostedGenerator.reader`."""
        return MessageReader(request, self.name, started, prepared)

    def refusal(
        self, status: int | None, error: Mapping[str, Any], headers: Mapping[str, str]
    ) -> ChiasmError:
        """See `HostedGenerator.refusal`."""
        return refused(status, error, self.name, headers)
