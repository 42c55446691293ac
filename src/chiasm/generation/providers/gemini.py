"""Answers by Google's Gemini API, from Google or from a server that speaks the same."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from chiasm.errors import ChiasmError, ConfigurationError
from chiasm.generation.providers.chat_messages import Encode
from chiasm.generation.providers.gemini_answer import ContentReader
from chiasm.generation.providers.gemini_client import gemini_connections
from chiasm.generation.providers.gemini_input import check_request, content_body, is_newer
from chiasm.generation.providers.gemini_refusals import refused
from chiasm.generation.providers.hosted import HostedGenerator
from chiasm.generation.request import Ability, Request

MOST_SIGNATURES = 4096
_MODEL = re.compile(r"[\w.-]+(?:/[\w.-]+)*")


class Gemini(HostedGenerator):
    """A model behind `:streamGenerateContent`. Its thoughts are not shown, but counted.

    From Gemini 3 on a model wants the signature back with which it called a tool. Nothing in our
    messages can carry it, so the newest are kept here, by tenant and the ids of the calls.

    base_url: what stands before `/v1beta/models`, or with a version of the API at its end.
    """

    connect = staticmethod(gemini_connections)

    abilities: ClassVar[frozenset[Ability]] = frozenset(
        ("choices", "effort", "logprobs", "penalties", "schema", "seed", "stop", "temperature",
         "tools", "top_k", "top_p")
    )  # fmt: skip

    def __init__(self, *, model: str, **options: Any) -> None:
        """As `HostedGenerator`. Raises ConfigurationError, too, for what is no model's name."""
        if not _MODEL.fullmatch(model) or ".." in model:
            raise ConfigurationError(f"{model!r} is not the name of a model.", param="model")
        super().__init__(model=model, **options)
        self.pictures_from_tools = is_newer(model)
        self._path = model if "/" in model else f"models/{model}"
        self._signatures: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, request: Request) -> str:
        """See `HostedGenerator.path`."""
        return f"{self._path}:streamGenerateContent?alt=sse"

    def check_request(self, request: Request) -> None:
        """See `HostedGenerator.check`."""
        super().check_request(request)
        check_request(request, self.model, self.name)

    def body(self, request: Request, encode: Encode) -> list[bytes]:
        """See `HostedGenerator.body`."""
        return content_body(
            request,
            self.model,
            encode,
            lambda call: self._signatures.get((request.tenant, call)),
        )

    def reader(self, request: Request, started: float, prepared: float) -> ContentReader:
        """See `HostedGenerator.reader`."""
        remember = partial(self._remember, request.tenant)
        return ContentReader(request, self.name, remember, started, prepared)

    def refusal(
        self, status: int | None, error: Mapping[str, Any], headers: Mapping[str, str]
    ) -> ChiasmError:
        """See `HostedGenerator.refusal`."""
        return refused(status, error, self.name, headers)

    def _remember(self, tenant: str, call: str, signature: str) -> None:
        with self._lock:
            self._signatures[tenant, call] = signature
            if len(self._signatures) > MOST_SIGNATURES:
                self._signatures.popitem(last=False)
