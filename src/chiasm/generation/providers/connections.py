"""Connections to a provider: pools of sockets, its address, and headers that stand ready.

Each vendor's own SDK says what address and headers are (`openai_client`, `anthropic_client`,
`gemini_client`); what is sent and read is the business of `asking`. OpenAI's and Anthropic's SDKs
are made by the same generator, and are opened by the same function, `sdk_connections`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from chiasm.errors import ConfigurationError
from chiasm.generation.providers.private import Private

if TYPE_CHECKING:
    import ssl

    import httpx2

_MOST_PLACES = 256

_Pools = WeakKeyDictionary[asyncio.AbstractEventLoop, "httpx2.AsyncClient"]


class Connections:
    """The pools of one provider and key, one for each event loop. See `connected`."""

    def __init__(
        self,
        address: httpx2.URL,
        headers: Mapping[str, object],
        connect: float,
        new_pool: Callable[[], httpx2.AsyncClient],
        spare: httpx2.AsyncClient | None = None,
    ) -> None:
        """address: of the API, with its last slash. headers: of every request.

        connect: seconds that a connection may take. spare: a pool that is there already. Raises
        ConfigurationError for what is no address.
        """
        import httpx2

        if address.userinfo:
            raise ConfigurationError(
                "A provider's address must hold no name or password.",
                hint="A key goes into the environment.",
                param="base_url",
            )
        if address.scheme not in ("http", "https") or not address.host:
            raise no_address(str(address))
        self._headers = httpx2.Headers({k: v for k, v in headers.items() if isinstance(v, str)})
        # An answer is read as it comes; compressing it would only hold it back.
        self._headers["Accept-Encoding"] = "identity"
        self._headers["Host"] = address.netloc.decode("ascii")
        self._address = address
        self.private = Private(self._headers, [str(address)])
        self._connect = connect
        self._new_pool = new_pool
        self._spare = spare
        self._pools: _Pools = WeakKeyDictionary()
        self._places: dict[str, httpx2.URL] = {}
        self._lock = threading.Lock()
        self.users = 0

    @property
    def host(self) -> str:
        """Whose server it is."""
        return str(self._address.host)

    @property
    def address(self) -> str:
        """To tell a model from others of the same name."""
        return str(self._address)

    async def post(
        self, path: str, pieces: Sequence[bytes], headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Send a JSON body; the response's own is still to be read, and the response to be closed.

        path: below the address, maybe with a query. headers: of this request alone. Raises httpx2's
        errors.
        """
        import httpx2

        sent = self._headers.copy()
        if headers:
            sent.update(headers)
        body: dict[str, Any]
        if len(pieces) == 1:
            body = {"content": pieces[0]}
        else:
            sent["Content-Length"] = str(sum(map(len, pieces)))
            body = {"stream": _stream_of(pieces)}
        request = httpx2.Request(
            "POST",
            self._place(path),
            headers=sent,
            # How long the rest may take is the business of `patience`.
            extensions={"timeout": {"connect": self._connect}},
            **body,
        )
        return await self._pool().send(request, stream=True, follow_redirects=False)

    def _place(self, path: str) -> httpx2.URL:
        """Kept, because to put a URL together takes as long as to parse an answer's event."""
        place = self._places.get(path)
        if place is None:
            path_alone, _, query = path.partition("?")
            place = self._address.copy_with(path=self._address.path + path_alone)
            place = place.copy_with(query=query.encode()) if query else place
            if len(self._places) >= _MOST_PLACES:  # some hold a model's name, which callers choose
                self._places.clear()
            self._places[path] = place
        return place

    def _pool(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        with self._lock:
            pool = self._pools.get(loop)
            if pool is None:
                pool, self._spare = self._spare or self._new_pool(), None
                self._pools[loop] = pool
        return pool

    async def leave(self) -> None:
        """Close the running loop's pool: it is about to end."""
        with self._lock:
            pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()

    def close(self) -> None:
        """Close every pool whose loop still runs; the others' sockets go with their loops."""
        with self._lock:
            pools, self._pools = list(self._pools.items()), WeakKeyDictionary()
        for loop, pool in pools:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                if loop.is_running():
                    asyncio.run_coroutine_threadsafe(pool.aclose(), loop)


def no_address(stated: str | None) -> ConfigurationError:
    """The error for what is no base URL."""
    return ConfigurationError(
        f"{stated!r} is not the address of a server.",
        hint="Write it as https://host:port, with the path where its API is.",
        param="base_url",
    )


@cache
def certificates() -> ssl.SSLContext:
    """Those that are trusted, read once: a pool that reads them itself takes 50 to 100 ms."""
    import httpx2

    return httpx2.create_ssl_context()


@cache
def transport_errors() -> tuple[type[Exception], ...]:
    """What may be raised while a request is under way; the SDK's transports translate not all."""
    import anyio
    import httpx2

    errors: tuple[type[Exception], ...] = (httpx2.HTTPError, OSError, anyio.EndOfStream)
    with contextlib.suppress(ImportError):
        import aiohttp

        errors = (*errors, aiohttp.ClientError)
    return errors


def never_reached(error: Exception) -> bool:
    """Whether no server has taken the connection.

    The SDKs' aiohttp transports say so, too, where one hangs up on a request that it was sent.
    """
    import httpx2

    cause = type(error.__cause__).__name__
    if cause in ("ServerDisconnectedError", "ClientOSError", "ClientConnectionResetError"):
        return False
    unreached = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
    return unreached or cause == "ConnectionTimeoutError"


def _stream_of(pieces: Sequence[bytes]) -> Any:
    """A body that is never put together."""
    import httpx2

    class Pieces(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

    return Pieces()


# The SDKs ---------------------------------------------------------------------------------------

NO_KEY = "none"
"""What an SDK is given that asks for a key; a server without keys is sent none."""


def not_installed(whose: str, package: str) -> ConfigurationError:
    """The error where an SDK is missing. whose: "Anthropic's models"."""
    return ConfigurationError(
        f"{whose} are asked by the package {package}, which is not installed.",
        hint='Run pip install "chiasm[providers]".',
    )


def sdk_connections(
    sdk: Any,
    client: Callable[..., Any],
    error: type[Exception],
    *,
    base_url: str | None,
    stated: str | None,
    key: str | None,
    headers: Mapping[str, str],
    connect: float,
) -> Connections:
    """Those that an SDK makes ready: its module, its client's class, the base of its errors.

    base_url: as the SDK takes it; stated: as the user wrote it. Raises ConfigurationError.
    """
    import httpx2

    def new_pool() -> httpx2.AsyncClient:
        pool: httpx2.AsyncClient
        try:
            pool = sdk.DefaultAioHttpClient(verify=certificates())
        except RuntimeError:  # an SDK that was installed without aiohttp
            pool = sdk.DefaultAsyncHttpxClient(verify=certificates())
        return pool

    pool = new_pool()
    try:
        ready = client(
            api_key=key or NO_KEY,
            base_url=base_url,
            default_headers=headers,
            max_retries=0,
            http_client=pool,
        )
        address = httpx2.URL(str(ready.base_url))
    except (error, httpx2.InvalidURL):
        raise no_address(stated) from None
    sent = {**ready.auth_headers, **ready.default_headers}
    if key is None:
        sent.pop("Authorization", None)
    return Connections(address, sent, connect, new_pool, pool)


# Sharing ----------------------------------------------------------------------------------------

_SHARED: dict[str, Connections] = {}
_SHARING = threading.Lock()


Connect = Callable[[str | None, str | None, Mapping[str, str], float], Connections]
"""From base_url, key, headers and the seconds that a connection may take. Raises ConfigurationError
where the SDK is not installed or the address is none."""


def connected(
    connect: Connect,
    base_url: str | None,
    key: str | None,
    headers: Mapping[str, str],
    seconds: float,
) -> Connections:
    """Those that `connect` opens, shared by all who ask for the same, while somebody holds them."""
    name = _name(connect.__module__, base_url, key, dict(headers), seconds)
    with _SHARING:
        found = _SHARED.get(name)
        if found is None:
            found = _SHARED[name] = connect(base_url, key, headers, seconds)
        found.users += 1
    return found


def disconnect(connections: Connections) -> None:
    """Hold them no more; they are closed when nobody does."""
    with _SHARING:
        connections.users -= 1
        if connections.users:
            return
        for name, each in list(_SHARED.items()):
            if each is connections:
                del _SHARED[name]
    connections.close()


def _name(*facts: object) -> str:
    """Tells one from another, and nobody the key."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()
