"""Connections to a server of OpenAI's APIs, through OpenAI's own SDK.

The SDK knows the address, the key, the organisation's headers and proxies, and keeps a pool of
connections. What it would do besides for each request is left out, because the time that this
product may add to a request is counted: measured on two cores against a local server, a streamed
text answer of seven chunks took of this process

    3.4 ms   by the SDK's typed `chat.completions.create`
    2.0 ms   by its untyped `post` and a raw stream
    0.9 ms   by its client's own `send`, of a request whose address and headers stand ready
    0.4 ms   the same with its aiohttp transport, which is what is done here

and with a picture of 2 MB 17, 3.8, 2.1 and 1.3 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from chiasm.errors import ConfigurationError
from chiasm.generation.providers.connections import (
    Connections,
    certificates,
    connected,
    no_address,
)

if TYPE_CHECKING:
    import httpx2

_NO_KEY = "none"  # the SDK asks for one; a server without keys is sent none


def openai_connections(
    base_url: str | None, key: str | None, headers: Mapping[str, str], connect: float
) -> Connections:
    """Those of this address and key, shared by all who ask for them. Blocks: imports the SDK.

    connect: seconds that a connection may take. Raises ConfigurationError where the SDK is not
    installed or the address is none.
    """
    facts = ("openai", base_url, key, dict(headers), connect)
    return connected(lambda: _connect(base_url, key, headers, connect), *facts)


def _connect(
    base_url: str | None, key: str | None, headers: Mapping[str, str], connect: float
) -> Connections:
    try:
        import httpx2
        from openai import AsyncOpenAI, OpenAIError
    except ImportError:
        raise ConfigurationError(
            "Models of OpenAI's APIs are asked by the package openai, which is not installed.",
            hint='Run pip install "chiasm[providers]".',
        ) from None
    pool = _new_pool()
    try:
        sdk = AsyncOpenAI(
            api_key=key or _NO_KEY,
            base_url=base_url,
            default_headers=headers,
            max_retries=0,
            http_client=pool,
        )
        address = httpx2.URL(str(sdk.base_url))
    except (OpenAIError, httpx2.InvalidURL):
        raise no_address(base_url) from None
    ready = {**sdk.auth_headers, **sdk.default_headers}
    if key is None:
        ready.pop("Authorization", None)
    return Connections(address, ready, connect, _new_pool, pool)


def _new_pool() -> httpx2.AsyncClient:
    from openai import DefaultAioHttpClient, DefaultAsyncHttpxClient

    try:
        return DefaultAioHttpClient(verify=certificates())
    except RuntimeError:  # an SDK that was installed without aiohttp
        return DefaultAsyncHttpxClient(verify=certificates())


def is_openais_own(host: str) -> bool:
    """Whether a host is OpenAI's, or Azure's that runs its models."""
    return host == "openai.com" or host.endswith((".openai.com", ".openai.azure.com"))
