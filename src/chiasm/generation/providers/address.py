"""Where a model answers that is run elsewhere, as it is written in the setting `generator`.

`vllm:http://one:8000,http://two:8000#model` are servers, the others vendors: `openai:model`, or
`openai:http://host:port/v1#model` where another server speaks the vendor's API.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from chiasm.errors import ConfigurationError

VLLM = "vllm"
SCHEMES: Mapping[str, str] = {
    VLLM: "",
    "openai": "/v1",
    "openai-responses": "/v1",
    "anthropic": "",
    "gemini": "",
}
"""How a server may be spoken to, and the path where that API is if an address has none."""

_VLLM_EXAMPLE = (
    "Write it as vllm:http://host:8000, several servers with commas between, #model last."
)


@dataclass(frozen=True)
class Address:
    """Servers of one model. urls: of vLLM without the API's path; none is the vendor's own.

    model: the name under which they serve it; None takes the first that vLLM servers name.
    """

    urls: tuple[str, ...]
    model: str | None = None
    scheme: str = VLLM


def is_remote(location: str) -> bool:
    """Whether a setting `generator` means servers and not weights."""
    return location.partition(":")[0] in SCHEMES and ":" in location


def parse_address(location: str) -> Address:
    """Raises ConfigurationError for what is no address."""
    scheme, _, rest = location.partition(":")
    if scheme not in SCHEMES:
        raise ConfigurationError(
            f"{location!r} names no server.", hint=_VLLM_EXAMPLE, param="generator"
        )
    if scheme != VLLM and not rest.startswith(("http://", "https://")):
        servers, model = "", rest
    else:
        servers, _, model = rest.partition("#")
    urls = [_server(each.strip(), location, scheme) for each in servers.split(",") if each.strip()]
    model = model.strip()
    if scheme == VLLM and not urls:
        raise ConfigurationError(
            f"{location!r} names no server.", hint=_VLLM_EXAMPLE, param="generator"
        )
    if scheme != VLLM and (not model or len(urls) > 1):
        raise ConfigurationError(
            f"{location!r} names no model of one server.", hint=_example(scheme), param="generator"
        )
    return Address(tuple(dict.fromkeys(urls)), model or None, scheme)


def _example(scheme: str) -> str:
    if scheme == VLLM:
        return _VLLM_EXAMPLE
    return f"Write it as {scheme}:model, or {scheme}:http://host:port{SCHEMES[scheme]}#model."


def _server(url: str, location: str, scheme: str) -> str:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname)
        right = right and parts.port != 0 and not parts.query
    except ValueError:  # a port that is no number
        right = False
    if not right:
        raise ConfigurationError(
            f"{location!r}: {url!r} is not the address of a server.",
            hint=_example(scheme),
            param="generator",
        )
    if parts.username or parts.password:
        raise ConfigurationError(
            "A server's address must hold no name or password.",
            hint="A key goes into the environment.",
            param="generator",
        )
    path = parts.path.rstrip("/")
    path = path.removesuffix("/v1") if scheme == VLLM else path or SCHEMES[scheme]
    return f"{parts.scheme}://{parts.netloc}{path}"
