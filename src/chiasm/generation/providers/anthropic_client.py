"""Connections to Anthropic's API, or to a server that speaks it, through Anthropic's own SDK.

The SDK knows the address, the version of the API, the key's header, proxies, and keeps a pool of
connections; its typed path is left out, as `openai_client` explains.
"""

from __future__ import annotations

from collections.abc import Mapping

from chiasm.generation.providers.connections import (
    Connections,
    not_installed,
    sdk_connections,
)


def anthropic_connections(
    base_url: str | None, key: str | None, headers: Mapping[str, str], connect: float
) -> Connections:
    """As `connections.Connect` has it. Blocks: imports the SDK."""
    try:
        import anthropic
    except ImportError:
        raise not_installed("Anthropic's models", "anthropic") from None
    return sdk_connections(
        anthropic,
        anthropic.AsyncAnthropic,
        anthropic.AnthropicError,
        # An address that ends with /v1, as other vendors write theirs, is meant as one without.
        base_url=base_url and base_url.rstrip("/").removesuffix("/v1"),
        stated=base_url,
        key=key,
        headers=headers,
        connect=connect,
    )
