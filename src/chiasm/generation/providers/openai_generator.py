"""What models behind OpenAI's two APIs have in common; see `openai_chat`, `openai_responses`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from chiasm.errors import ChiasmError
from chiasm.generation.providers.hosted import HostedGenerator
from chiasm.generation.providers.openai_client import is_openais_own, openai_connections
from chiasm.generation.providers.openai_refusals import refused, status_in
from chiasm.generation.providers.patience import Patience
from chiasm.generation.request import Request
from chiasm.media.limits import Limits


class OpenAIGenerator(HostedGenerator):
    """A model behind one of OpenAI's APIs. Safe to use from several threads and tasks."""

    place: ClassVar[str]
    """Of the API, below the base URL."""

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
        patience = patience or Patience()
        connections = openai_connections(base_url, key, headers or {}, patience.connect)
        super().__init__(connections, model, name, patience, context, limits)
        self.own = is_openais_own(connections.host)

    def path(self, request: Request) -> str:
        """See `HostedGenerator.path`."""
        return self.place

    def refusal(
        self, status: int | None, error: Mapping[str, Any], headers: Mapping[str, str]
    ) -> ChiasmError:
        """See `HostedGenerator.refusal`."""
        status = status_in(error) if status is None else status
        return refused(status, error, self.name, headers=headers)
