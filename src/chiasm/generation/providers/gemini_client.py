"""Connections to Google's Gemini API, or to a server that speaks it, through Google's own SDK.

The SDK is asked for one request, which goes nowhere: its address and headers are those of all that
follow. Its own way is not taken, for it decodes and encodes pictures anew, and waits some seconds
and sends again where a connection breaks; that is the router's business.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from chiasm.generation.providers.connections import (
    NO_KEY,
    Connections,
    certificates,
    no_address,
    not_installed,
)

if TYPE_CHECKING:
    import httpx2

_VERSION = "v1beta"
"""Of the API. The SDK's own `v1` has neither the models `…-latest` nor all previews."""

_VERSIONED = re.compile(r"/(v\d+(?:alpha|beta)?\d*)/?$")
_MODEL = "models/any"


def gemini_connections(
    base_url: str | None, key: str | None, headers: Mapping[str, str], connect: float
) -> Connections:
    """As `connections.Connect` has it. Blocks: imports the SDK."""
    try:
        import httpx2
        from google import genai
        from google.genai.types import HttpOptions
    except ImportError:
        raise not_installed("Gemini's models", "google-genai") from None
    version = None if os.environ.get("GOOGLE_GENAI_API_VERSION") else _VERSION
    if base_url and (named := _VERSIONED.search(base_url)):
        base_url, version = base_url[: named.start()], named[1]
    requests: list[httpx2.Request] = []

    def keep(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        return httpx2.Response(200, json={})

    try:
        with httpx2.Client(transport=httpx2.MockTransport(keep)) as nowhere:
            options = HttpOptions(
                base_url=base_url, api_version=version, headers=dict(headers), httpx_client=nowhere
            )
            sdk = genai.Client(api_key=key or NO_KEY, enterprise=False, http_options=options)
            sdk.models.generate_content(model=_MODEL, contents="x")
            address = requests[0].url
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
        raise no_address(base_url) from None
    ready = dict(requests[0].headers)
    ready.pop("content-length", None)
    if key is None:
        ready.pop("x-goog-api-key", None)
    address = address.copy_with(path=address.path.partition(_MODEL)[0])
    return Connections(address, ready, connect, _new_pool)


def _new_pool() -> httpx2.AsyncClient:
    import httpx2

    limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
    return httpx2.AsyncClient(limits=limits, verify=certificates())
