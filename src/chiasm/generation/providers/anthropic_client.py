"""Connections to Anthropic's API, or to a server that speaks it, through Anthropic's own SDK.

The SDK knows the address, the version of the API, the key's header, proxies, and keeps a pool of
connections; its typed path is left out, as `openai_client` explains.
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


def anthropic_connections(
    base_url: str | None, key: str | None, headers: Mapping[str, str], connect: float
) -> Connections:
    """Those of this address and key, shared by all who ask for them. Blocks: imports the SDK.

    connect: seconds that a connection may take. Raises ConfigurationError where the SDK is not
    installed or the address is none.
    """
    facts = ("anthropic", base_url, key, dict(headers), connect)
    return connected(lambda: _connect(base_url, key, headers, connect), *facts)


def _connect(
    base_url: str | None, key: str | None, headers: Mapping[str, str], connect: float
) -> Connections:
    try:
        import httpx2
        from anthropic import AnthropicError, AsyncAnthropic
    except ImportError:
        raise ConfigurationError(
            "Anthropic's models are asked by the package anthropic, which is not installed.",
            hint='Run pip install "chiasm[providers]".',
        ) from None
    pool = _new_pool()
    try:
        sdk = AsyncAnthropic(
            api_key=key or _NO_KEY,
            # An address that ends with /v1, as other vendors write theirs, is meant as one without.
            base_url=base_url and base_url.rstrip("/").removesuffix("/v1"),
            default_headers=headers,
            max_retries=0,
            http_client=pool,
        )
        address = httpx2.URL(str(sdk.base_url))
    except (AnthropicError, httpx2.InvalidURL):
        raise no_address(base_url) from None
    ready = {**sdk.auth_headers, **sdk.default_headers}
    if key is None:
        ready.pop("Authorization", None)
    return Connections(address, ready, connect, _new_pool, pool)


def _new_pool() -> httpx2.AsyncClient:
    from anthropic import DefaultAioHttpClient, DefaultAsyncHttpxClient

    try:
        return DefaultAioHttpClient(verify=certificates())
    except RuntimeError:  # an SDK that was installed without aiohttp
        return DefaultAsyncHttpxClient(verify=certificates())
