"""One file over HTTP into a folder: resumed where it was cut, checked, and put in place whole."""

from __future__ import annotations

import base64
import http.client
import logging
import netrc
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from chiasm import __version__
from chiasm.errors import DownloadFailed
from chiasm.models.catalog.cache import CHUNK, check_digest, digest_of, disk_errors, require_space
from chiasm.models.catalog.progress import Progress

_log = logging.getLogger(__name__)

_TRIES = 5  # in a row without a single new byte
_HTTP_OK, _HTTP_PARTIAL, _HTTP_RANGE_REFUSED = 200, 206, 416


@dataclass(frozen=True)
class Transport:
    """How to reach a server: what `pip` calls cert, client-cert, proxy, timeout, trusted-host.

    credentials: host (with its port, if one is written) → (user, password).
    timeout: seconds without an answer before a try is given up.
    """

    certificates: str | None = None
    client_certificate: str | None = None
    proxy: str | None = None
    timeout: float = 15.0
    trusted_hosts: frozenset[str] = frozenset()
    credentials: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def open(self, url: str, headers: Mapping[str, str]) -> Any:
        """GET `url`. Returns the response; raises DownloadFailed with the reason."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"}:
            raise DownloadFailed(f"{host_of(url)} is not at an http or https address.")
        request = urllib.request.Request(_without_credentials(parts), headers=dict(headers))
        request.add_header("User-Agent", f"chiasm/{__version__}")
        if login := self._login(parts):
            token = base64.b64encode(":".join(login).encode()).decode()
            # Unredirected: a server that sends us elsewhere does not send our password along.
            request.add_unredirected_header("Authorization", f"Basic {token}")
        trusted = {parts.hostname, parts.netloc.rpartition("@")[2]} & self.trusted_hosts
        opener = self._unchecked_opener if trusted else self._opener
        try:
            return opener.open(request, timeout=self.timeout)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DownloadFailed(f"{host_of(url)} {reason(error)}.") from error

    def _login(self, parts: SplitResult) -> tuple[str, str] | None:
        if parts.username is not None:
            return unquote(parts.username), unquote(parts.password or "")
        if known := self.credentials.get(parts.netloc):
            return known
        try:
            found = netrc.netrc().authenticators(parts.hostname or "")
        except (OSError, netrc.NetrcParseError):
            return None  # no such file, or not ours to mend: the server will say what it lacks
        return (found[0], found[2] or "") if found else None

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        if self.certificates:
            context = ssl.create_default_context(cafile=self.certificates)
        else:
            context = ssl.create_default_context()
            if bundle := _pip_certificates():  # some systems' Python has no certificates at all
                context.load_verify_locations(bundle)
        return self._build(context)

    @cached_property
    def _unchecked_opener(self) -> urllib.request.OpenerDirector:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return self._build(context)

    def _build(self, context: ssl.SSLContext) -> urllib.request.OpenerDirector:
        if self.client_certificate:
            context.load_cert_chain(self.client_certificate)
        proxies = {"http": self.proxy, "https": self.proxy} if self.proxy else None
        return urllib.request.build_opener(
            urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context)
        )


def fetch(
    url: str,
    target: Path,
    *,
    cache_dir: Path,
    transport: Transport,
    sha256: str | None,
    label: str,
    progress: Progress,
    room: int = 0,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Download `url` to `target`, going on from `target`.partial when that is there.

    sha256: the whole file's digest where the index states it. What an earlier process left is
        taken if it has that digest already; a file that was resumed and does not have it is
        fetched once more from the start before that is an error.
    room: bytes that must stay free for what comes after, beside the download itself.

    Raises DownloadFailed, DigestMismatch, NoSpace.
    """
    partial = target.with_name(f"{target.name}.partial")
    with disk_errors(cache_dir):
        target.parent.mkdir(parents=True, exist_ok=True)
        download = _Download(url, partial, transport, label, progress, cache_dir, room, sleep)
        for left in (target, partial):
            if sha256 is not None and left.exists() and digest_of(left) == sha256:
                return left.replace(target)
        resumed = partial.exists()
        download.run()
        if sha256 is not None:
            if resumed and digest_of(partial) != sha256:
                partial.unlink()
                download.run()
            check_digest(partial, target.name, sha256)
        partial.replace(target)
    progress.finish()
    return target


@dataclass
class _Download:
    """The tries of one download, each going on where the one before was cut."""

    url: str
    partial: Path
    transport: Transport
    label: str
    progress: Progress
    cache_dir: Path
    room: int
    sleep: Callable[[float], None]
    shown: int | None = None  # bytes the progress knows of

    def run(self) -> None:
        failures = 0
        while True:
            before = self._size()
            try:
                self._go_on()
                return
            except DownloadFailed as error:
                failures = 0 if self._size() > before else failures + 1
                if failures >= _TRIES or not _worth_another_try(error):
                    raise
                _log.info("%s Going on from byte %d.", error.message, self._size())
            self.sleep(min(0.25 * 2**failures, 8.0))

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _go_on(self) -> None:
        have = self._size()
        # Identity: a server that compressed on the way would make ranges and sizes meaningless.
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            response = self.transport.open(self.url, headers)
        except DownloadFailed as error:
            if have and _status(error) == _HTTP_RANGE_REFUSED:
                # It is longer than the file, or whole already: only a fresh start can tell.
                self.partial.unlink()
                return self._go_on()
            raise
        with response:
            if have and not _continues(response, have):
                have = 0
            total = _total(response, have)
            self._show(have, total)
            if total is not None:
                require_space(self.partial.parent, total - have + self.room, self.cache_dir)
            with self.partial.open("ab" if have else "wb") as file:
                have += self._copy(response, file)
        if total is not None and have != total:
            raise DownloadFailed(f"{host_of(self.url)} closed the connection too early.")
        return None

    def _copy(self, response: Any, file: IO[bytes]) -> int:
        copied = 0
        while True:
            try:
                chunk = response.read1(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise DownloadFailed(f"{host_of(self.url)} {reason(error)}.") from error
            if not chunk:
                return copied
            file.write(chunk)
            copied += len(chunk)
            self._advance(len(chunk))

    def _show(self, have: int, total: int | None) -> None:
        if self.shown is None:
            self.progress.start(self.label, total)
            self.shown = 0
        self._advance(have - self.shown)

    def _advance(self, n: int) -> None:
        if n:
            self.shown = (self.shown or 0) + n
            self.progress.advance(n)


def _continues(response: Any, have: int) -> bool:
    stated = response.headers.get("Content-Range", "")
    return response.status == _HTTP_PARTIAL and stated.startswith(f"bytes {have}-")


def _total(response: Any, have: int) -> int | None:
    length = response.headers.get("Content-Length")
    return have + int(length) if length is not None and length.isdecimal() else None


def _status(error: DownloadFailed) -> int | None:
    cause = error.__cause__
    return cause.code if isinstance(cause, urllib.error.HTTPError) else None


def _worth_another_try(error: DownloadFailed) -> bool:
    """A cut, a time-out or a busy server may pass; a refusal or an unknown host will not."""
    status = _status(error)
    if status is not None:
        return status in {408, 425, 429} or status >= 500
    cause = error.__cause__
    if isinstance(cause, urllib.error.URLError):
        return isinstance(cause.reason, TimeoutError | ConnectionResetError)
    return True


# Words for what went wrong ----------------------------------------------------------------------


def reason(error: BaseException) -> str:
    """What a failed connection means, in our words and without the driver's."""
    if isinstance(error, urllib.error.HTTPError):
        return _STATUS_WORDS.get(error.code, f"answered with status {error.code}")
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return reason(error.reason)
    for kind, words in _REASONS:
        if isinstance(error, kind):
            return words
    return "cannot be reached"


_STATUS_WORDS = {
    401: "asks for a user name and a password",
    403: "refuses to hand out the file",
    404: "has no such file",
    407: "is behind a proxy that asks for a password",
}

_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "cannot be found: there is no network, or no such host"),
    (ssl.SSLCertVerificationError, "shows a certificate that this machine does not trust"),
    (ssl.SSLError, "could not agree on an encrypted connection"),
    (TimeoutError, "does not answer in time"),
    (ConnectionRefusedError, "refuses the connection"),
    (ConnectionError, "closed the connection too early"),
    (http.client.IncompleteRead, "closed the connection too early"),
    (http.client.HTTPException, "answered with something that is not HTTP"),
)


def host_of(url: str) -> str:
    """The host of a URL, for a message: never the user's password."""
    return urlsplit(url).netloc.rpartition("@")[2] or url


def _without_credentials(parts: SplitResult) -> str:
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))


def _pip_certificates() -> str | None:
    pip = find_spec("pip")
    if pip is None or not pip.submodule_search_locations:
        return None
    bundle = Path(pip.submodule_search_locations[0], "_vendor", "certifi", "cacert.pem")
    return str(bundle) if bundle.is_file() else None
