"""Pictures from hosts that the operator has allowed by name, and from nowhere else.

Each step, redirects included, goes the same way: read the address, look whether its host is
allowed, resolve the name once, check what it resolved to, and connect to that very address.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urljoin

import anyio

from chiasm.errors import ImageError, NotAnImage
from chiasm.media import container
from chiasm.media.address import Address, AllowedHost, host_for, may_connect, read_address
from chiasm.media.limits import Limits
from chiasm.media.source import check_bytes

if TYPE_CHECKING:
    import httpx

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) → numeric addresses, the preferred one first. Raises OSError."""

_MOST_REDIRECTS = 3
_MOST_ADDRESSES = 4
_CONNECT_SECONDS = 3.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_INLINE = 'send the picture itself: "data:image/jpeg;base64,…".'
_HEADERS = {
    "accept": "image/*",
    "accept-encoding": "identity",
    "connection": "close",
    "user-agent": "chiasm",
}


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system's resolver."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Fetcher:
    """Fetches pictures. No cookies, no proxies, no credentials; nothing is kept.

    hosts: those that may be asked.
    limits: of one picture; `max_bytes` is counted while it arrives.
    max_seconds: for one picture, with all redirects.
    at_once: pictures that are fetched at a time; others wait.
    """

    def __init__(
        self,
        hosts: Sequence[AllowedHost],
        limits: Limits,
        *,
        max_seconds: float,
        at_once: int = 16,
        resolve: Resolve = resolve,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.hosts = tuple(hosts)
        self.resolve = resolve
        self._limits = limits
        self._seconds = max_seconds
        self._places = anyio.Semaphore(at_once)
        self._tls = tls

    async def fetch(self, url: str, *, name: str) -> bytes:
        """The encoded bytes of the picture at `url`, which begin as a picture does.

        name: what to call it in messages. Raises ImageError, ImageTooLarge, NotAnImage; their
        sentences hold nothing of what was received.
        """
        if not self.hosts:
            self._refuse_host(name)
        async with self._places:
            try:
                with anyio.fail_after(self._seconds):
                    return await self._follow(url, name)
            except TimeoutError:
                raise ImageError(
                    name,
                    f"fetching it took longer than the limit of {self._seconds:g} seconds.",
                    hint=f"Try again, or {_INLINE}",
                ) from None

    async def _follow(self, url: str, name: str) -> bytes:
        for _ in range(_MOST_REDIRECTS + 1):
            address = _read(url, name)
            host = host_for(address, self.hosts)
            if host is None:
                self._refuse_host(name)
            step = await self._step(address, await self._checked(address, host, name), name)
            if isinstance(step, bytes):
                return step
            # Joined by a library's rules; what comes out is read, and checked, by ours.
            url = urljoin(str(address), step.location)
        raise ImageError(name, f"its address leads on more than {_MOST_REDIRECTS} times.")

    def _refuse_host(self, name: str) -> NoReturn:
        none = "pictures are not fetched from addresses here."
        raise ImageError(
            name,
            "this server fetches no pictures from that host." if self.hosts else none,
            hint=f"Either {_INLINE[:-1]}, or let the operator add the host to the setting "
            "fetch.hosts.",
        )

    async def _checked(self, address: Address, host: AllowedHost, name: str) -> list[str]:
        """What the name resolves to, if all of it may be connected to."""
        try:
            found = list(await self.resolve(address.host, address.port))
        except (OSError, UnicodeError):
            found = []
        if not found:
            raise ImageError(name, "the name of its host cannot be resolved.")
        if not all(may_connect(each, private=host.private) for each in found):
            raise ImageError(
                name,
                "its host lies in a network that pictures are not fetched from.",
                hint="If that is meant, let the operator mark the host `private` in fetch.hosts.",
            )
        return found[:_MOST_ADDRESSES]

    async def _step(self, address: Address, numbers: list[str], name: str) -> bytes | _Redirect:
        import httpx

        if self._tls is None:
            self._tls = await anyio.to_thread.run_sync(httpx.create_ssl_context)
        # A transport and not a client: no cookies, no redirects, no line in a log for each URL.
        async with httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False) as transport:
            for left, number in reversed(list(enumerate(reversed(numbers)))):
                try:
                    response = await transport.handle_async_request(self._request(address, number))
                except httpx.ConnectError:
                    if left:
                        continue
                    raise ImageError(name, "its host cannot be reached.") from None
                except httpx.TimeoutException:
                    if left:
                        continue
                    raise ImageError(name, "its host does not answer in time.") from None
                except (httpx.HTTPError, httpx.InvalidURL):
                    raise _broken_off(name) from None
                try:
                    return await self._received(response, name)
                except httpx.HTTPError:
                    raise _broken_off(name) from None
                finally:
                    await response.aclose()
        raise AssertionError("a name resolved to nothing")

    def _request(self, address: Address, number: str) -> httpx.Request:
        import httpx

        target = address.target.encode("ascii")
        return httpx.Request(
            "GET",
            httpx.URL(scheme=address.scheme, host=number, port=address.port, raw_path=target),
            headers={"host": address.authority, **_HEADERS},
            extensions={
                # The certificate must be the name's, whatever number was connected to.
                "sni_hostname": address.host,
                "timeout": dict.fromkeys(("connect", "pool"), min(_CONNECT_SECONDS, self._seconds))
                | dict.fromkeys(("read", "write"), self._seconds),
            },
        )

    async def _received(self, response: httpx.Response, name: str) -> bytes | _Redirect:
        location = response.headers.get("location")
        if response.status_code in _REDIRECTS and location is not None:
            if not location.isascii() or not location.isprintable():
                raise _doubtful(name)
            return _Redirect(location)
        if response.status_code != 200:
            raise ImageError(name, f"its server answered with the status {response.status_code}.")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise ImageError(name, "its server sent it compressed, which was not asked for.")
        length = response.headers.get("content-length", "0")
        check_bytes(int(length) if length.isdecimal() else 0, self._limits, name)
        data = bytearray()
        pieces = response.aiter_raw()
        async with aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                known = len(data) >= container.PREFIX
                data += piece
                check_bytes(len(data), self._limits, name)
                if not known and len(data) >= container.PREFIX:
                    _check_picture(data, name)
        _check_picture(data, name)
        return bytes(data)


@dataclass(frozen=True)
class _Redirect:
    location: str


def _read(url: str, name: str) -> Address:
    address = read_address(url)
    if address is None:
        raise _doubtful(name)
    return address


def _doubtful(name: str) -> ImageError:
    return ImageError(
        name,
        "its address is not written in the plain form that is followed here.",
        hint="Percent-encode it, without user names, backslashes or numbers for the host.",
    )


def _check_picture(data: bytearray, name: str) -> None:
    prefix = bytes(data[: container.PREFIX])
    if container.identify(prefix) is None:
        raise NotAnImage(name, "what lies at its address is no picture that is read here.")


def _broken_off(name: str) -> ImageError:
    return ImageError(name, "its server broke off, or spoke no HTTP.")
