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

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from chiasm.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx2

_NO_KEY = "none"  # the SDK asks for one; a server without keys is sent none
_Pools = WeakKeyDictionary[asyncio.AbstractEventLoop, "httpx2.AsyncClient"]


class Connections:
    """The pools of one provider and key, one for each event loop. See `connected`."""

    def __init__(
        self, base_url: str | None, key: str | None, headers: Mapping[str, str], connect: float
    ) -> None:
        """Blocks for a second or two: imports the SDK.

        Raises ConfigurationError where it is not installed or the address is none.
        """
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
            address = httpx2.URL("")
        if address.userinfo:
            raise ConfigurationError(
                "A provider's address must hold no name or password.",
                hint="A key goes into the environment.",
                param="base_url",
            )
        if address.scheme not in ("http", "https") or not address.host:
            raise ConfigurationError(
                f"{base_url!r} is not the address of a server.",
                hint="Write it as https://host:port/v1.",
                param="base_url",
            )
        ready = {**sdk.auth_headers, **sdk.default_headers}
        # An answer is read as it comes; compressing it would only hold it back.
        ready |= {"Accept-Encoding": "identity", "Host": address.netloc.decode("ascii")}
        if key is None:
            ready.pop("Authorization", None)
        self._headers = httpx2.Headers({k: v for k, v in ready.items() if isinstance(v, str)})
        self._address = address
        self._connect = connect
        self._spare: httpx2.AsyncClient | None = pool
        self._pools: _Pools = WeakKeyDictionary()
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

    async def post(self, path: str, pieces: Sequence[bytes]) -> httpx2.Response:
        """Send a JSON body; the response's own is still to be read, and the response to be closed.

        Raises httpx2's errors.
        """
        import httpx2

        headers = self._headers.copy()
        body: dict[str, Any]
        if len(pieces) == 1:
            body = {"content": pieces[0]}
        else:
            headers["Content-Length"] = str(sum(map(len, pieces)))
            body = {"stream": _stream_of(pieces)}
        request = httpx2.Request(
            "POST",
            self._address.copy_with(path=self._address.path + path),
            headers=headers,
            # How long the rest may take is the business of `patience`.
            extensions={"timeout": {"connect": self._connect}},
            **body,
        )
        return await self._pool().send(request, stream=True, follow_redirects=False)

    def _pool(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        with self._lock:
            pool = self._pools.get(loop)
            if pool is None:
                pool, self._spare = self._spare or _new_pool(), None
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


def _new_pool() -> httpx2.AsyncClient:
    from openai import DefaultAioHttpClient, DefaultAsyncHttpxClient

    try:
        return DefaultAioHttpClient()
    except RuntimeError:  # an SDK that was installed without aiohttp
        return DefaultAsyncHttpxClient()


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

    The aiohttp transport says so, too, where one hangs up on a request that it was sent.
    """
    import httpx2

    cause = type(error.__cause__).__name__
    if isinstance(error, httpx2.ConnectError) or cause == "ConnectionTimeoutError":
        return True
    hung_up = ("ServerDisconnectedError", "ClientOSError", "ClientConnectionResetError")
    return isinstance(error, httpx2.ConnectTimeout) and cause not in hung_up


def _stream_of(pieces: Sequence[bytes]) -> Any:
    """A body that is never put together."""
    import httpx2

    class Pieces(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

    return Pieces()


# Sharing ----------------------------------------------------------------------------------------

_SHARED: dict[str, Connections] = {}
_SHARING = threading.Lock()


def connected(
    base_url: str | None, key: str | None, headers: Mapping[str, str], connect: float
) -> Connections:
    """The connections of that provider and key, for as long as somebody holds them.

    connect: seconds that a connection may take. Raises what `Connections` raises.
    """
    name = _name(base_url, key, headers, connect)
    with _SHARING:
        found = _SHARED.get(name)
        if found is None:
            found = _SHARED[name] = Connections(base_url, key, headers, connect)
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


def is_openais_own(host: str) -> bool:
    """Whether a host is OpenAI's, or Azure's that runs its models."""
    return host == "openai.com" or host.endswith((".openai.com", ".openai.azure.com"))
