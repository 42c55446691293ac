"""What stands at the door: request ids, limits, and refusals that need no route.

Plain ASGI, outermost first: `Envelope` (id, headers, log line, last resort), `TrustedOrigin`
(who may talk to us), `BodyLimit` (how much).

The server listens on a loopback address by default and then has no keys, so whatever the user's
browser shows could try to talk to it. Three things keep a foreign page out: an unknown Host is
refused (DNS rebinding), a writing request from another origin is refused (CSRF), and a body must
declare a type that a page cannot send without asking first (CORS is never granted).
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
import time
import uuid
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chiasm.server.errors import (
    RETRY_AFTER_SECONDS,
    error_body,
    error_response,
    internal_body,
    log_unexpected,
    speaks_messages,
)

access = logging.getLogger("chiasm.server.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_WRITING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_BODY_TYPES = frozenset({"application/json", "multipart/form-data"})
_BODIES_AT_ONCE = 4
_CLIENT_GONE = 499  # nginx's number for it; nobody is left to receive one
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


class Envelope:
    """Gives each request an id, each answer its headers, and each its line in the log.

    An error that nobody foresaw ends here: logged with its trace, answered with a fixed sentence.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 0

        async def send_in_envelope(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if speaks_messages(scope):
                    headers["request-id"] = request_id  # the name that Anthropic's clients read
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_in_envelope)
        except ClientDisconnect:
            status = status or _CLIENT_GONE
        except Exception as error:
            log_unexpected(error, request_id)
            if status == 0:
                failure = error_response(scope, internal_body(), 500)
                await failure(scope, receive, send_in_envelope)
            else:
                raise  # The answer has begun: only the connection can still say that it failed.
        finally:
            # The path as it came, percent-encoded: it cannot break the line. Never the query.
            path = scope.get("raw_path", b"").partition(b"?")[0].decode("latin-1")[:300]
            milliseconds = (time.perf_counter() - started) * 1000
            access.info(
                "%s %s %d %.1f ms %s", scope["method"], path, status, milliseconds, request_id
            )


class TrustedOrigin:
    """Refuses what a foreign page could make the user's browser send.

    hosts: names and addresses (no ports) that the Host header may hold; None admits any.
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = self._refusal(scope, Headers(scope=scope))
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        method: str = scope["method"]
        host = headers.get("host", "")
        if self._hosts is not None and host_name(host) not in self._hosts:
            return _refuse(
                scope,
                403,
                "This server does not answer to that Host.",
                hint="Add the name to the setting server.allowed_hosts.",
                code="host_not_allowed",
            )
        if method in _WRITING and _is_foreign(headers, host):
            return _refuse(
                scope,
                403,
                "Pages of another origin may not write here.",
                hint="Call the API from a program, or from the server's own console.",
                code="cross_site_request",
            )
        declared = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method in _WITH_BODY and declared not in _BODY_TYPES:
            return _refuse(
                scope,
                415,
                "The body's Content-Type must be application/json"
                " (or multipart/form-data, for uploads).",
                hint="Send the header Content-Type: application/json.",
                code="unsupported_media_type",
            )
        return None


class BodyLimit:
    """Refuses a body of more than `max_bytes`: by its declared length, else while it streams.

    All requests under way together may hold four such bodies; who would make it more is asked to
    come back.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self._max_bytes:
            await self._too_large(scope)(scope, receive, send)
            return
        received, started = 0, False
        refusal: JSONResponse | None = None

        async def receive_counted() -> Message:
            nonlocal received, refusal
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self._held += size
            if received > self._max_bytes:
                refusal = self._too_large(scope)
            elif self._held > _BODIES_AT_ONCE * self._max_bytes:
                refusal = self._too_many(scope)
            if refusal is not None:
                raise _Overflow
            return message

        async def send_unless_refused(message: Message) -> None:
            # A reader further in may turn the exception into an answer of its own; the limit's
            # answer is the right one, whatever that reader made of it.
            nonlocal started
            if refusal is None or started:
                started = True
                await send(message)

        try:
            with contextlib.suppress(_Overflow):
                await self._app(scope, receive_counted, send_unless_refused)
        finally:
            self._held -= received
        if refusal is not None and not started:
            await refusal(scope, receive, send)

    def _too_large(self, scope: Scope) -> JSONResponse:
        # The rest of the body is not wanted: closing is the only way to say so in HTTP/1.1.
        return _refuse(
            scope,
            413,
            f"The request's body is larger than the limit of {self._max_bytes:,} bytes.",
            hint="Send fewer pictures at a time, or raise the setting server.max_request_bytes.",
            code="request_too_large",
            headers={"connection": "close"},
        )

    def _too_many(self, scope: Scope) -> JSONResponse:
        return _refuse(
            scope,
            503,
            "Too many large requests are under way.",
            hint="Try again in a moment.",
            code="overloaded",
            kind="server_error",
            headers={"connection": "close", "retry-after": str(RETRY_AFTER_SECONDS)},
        )


class _Overflow(Exception):
    """The body grew past its limit."""


def allowed_hosts(listen_on: str, configured: str) -> frozenset[str] | None:
    """Host names to answer to, or None for any.

    listen_on: the address the server is bound to. On a loopback address only loopback names are
        good, and what is configured; on any other one the names are the operator's business, and
        only `configured` narrows them.
    configured: names separated by commas; `*` admits any.
    """
    names = frozenset(host_name(name.strip()) for name in configured.split(",") if name.strip())
    if "*" in names:
        return None
    if is_loopback(listen_on):
        return names | {"localhost", "127.0.0.1", "::1", host_name(listen_on)}
    return names or None


def is_loopback(host: str) -> bool:
    """Whether `host` reaches this machine alone."""
    if host_name(host) == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    """A Host header without its port, in lower case: `[::1]:8000` → `::1`."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, _, port = host.rpartition(":")
    return name if name and ":" not in name and (port.isdecimal() or not port) else host


def _is_foreign(headers: Headers, host: str) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None:
        # The browser's own word. "same-site" is foreign: another port of localhost is that.
        return site not in {"same-origin", "none"}
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() != host.lower()


def _refuse(
    scope: Scope,
    status: int,
    message: str,
    *,
    hint: str,
    code: str,
    kind: str = "invalid_request_error",
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    body = error_body(f"{message} {hint}", kind=kind, code=code)
    return error_response(scope, body, status, headers)
