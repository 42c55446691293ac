"""`vllm:http://one:8000,http://two:8000#model`: where a model answers that is run elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from chiasm.errors import ConfigurationError

SCHEME = "vllm:"
_EXAMPLE = "Write it as vllm:http://host:8000, several servers with commas between, #model last."


@dataclass(frozen=True)
class Address:
    """Servers of one model. urls: without a path's end, `http://host:8000`.

    model: the name under which they serve it; None takes the first that they name.
    """

    urls: tuple[str, ...]
    model: str | None = None


def is_remote(location: str) -> bool:
    """Whether a setting `generator` means servers and not weights."""
    return location.startswith(SCHEME)


def parse_address(location: str) -> Address:
    """Raises ConfigurationError for what is no address."""
    servers, _, model = location.removeprefix(SCHEME).partition("#")
    urls = [_server(each.strip(), location) for each in servers.split(",") if each.strip()]
    if not urls or not is_remote(location):
        raise ConfigurationError(f"{location!r} names no server.", hint=_EXAMPLE, param="generator")
    return Address(tuple(dict.fromkeys(urls)), model.strip() or None)


def _server(url: str, location: str) -> str:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname)
        right = right and parts.port != 0 and not parts.query
    except ValueError:  # a port that is no number
        right = False
    if not right:
        raise ConfigurationError(
            f"{location!r}: {url!r} is not the address of a server.",
            hint=_EXAMPLE,
            param="generator",
        )
    if parts.username or parts.password:
        raise ConfigurationError(
            "A server's address must hold no name or password.",
            hint="A key goes into the environment variable VLLM_API_KEY.",
            param="generator",
        )
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}"
