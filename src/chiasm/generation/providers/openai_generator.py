"""What models behind OpenAI's two APIs have in common; see `openai_chat`, `openai_responses`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from chiasm.errors import ChiasmError
from chiasm.generation.providers.hosted import HostedGenerator
from chiasm.generation.providers.openai_client import is_openais_own, openai_connections
from chiasm.generation.providers.openai_refusals import refused, status_in
from chiasm.generation.request import Request


class OpenAIGenerator(HostedGenerator):
    """A model behind one of OpenAI's APIs. base_url: with its `/v1`."""

    connect = staticmethod(openai_connections)

    place: ClassVar[str]
    """Of the API, below the base URL."""

    @property
    def own(self) -> bool:
        """Whether the server is OpenAI's own."""
        return is_openais_own(self._connections.host)

    def path(self, request: Request) -> str:
        """See `HostedGenerator.path`."""
        return self.place

    def refusal(
        self, status: int | None, error: Mapping[str, Any], headers: Mapping[str, str]
    ) -> ChiasmError:
        """See `HostedGenerator.refusal`."""
        status = status_in(error) if status is None else status
        return refused(status, error, self.name, headers=headers)
