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

from chiasm.generation.providers.connections import (
    Connections,
    not_installed,
    sdk_connections,
)


def openai_connections(
    base_url: str | None, key: str | None, headers: Mapping[str, str], connect: float
) -> Connections:
    """As `connections.Connect` has it. Blocks: imports the SDK."""
    try:
        import openai
    except ImportError:
        raise not_installed("Models of OpenAI's APIs", "openai") from None
    return sdk_connections(
        openai,
        openai.AsyncOpenAI,
        openai.OpenAIError,
        base_url=base_url,
        stated=base_url,
        key=key,
        headers=headers,
        connect=connect,
    )


def is_openais_own(host: str) -> bool:
    """Whether a host is OpenAI's, or Azure's that runs its models."""
    return host == "openai.com" or host.endswith((".openai.com", ".openai.azure.com"))
