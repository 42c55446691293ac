"""Files that ship with the server: the console at `/`, the API's page at `/docs`.

The files are listed once, when the server is made, and only what is on the list is served: there
is no path to climb out of. Nothing of them comes from another host.
"""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
from fastapi import FastAPI, Request, Response

CONSOLE = Path(__file__).parent / "console"
API_PAGE = Path(__file__).parent / "api_page"

CONSOLE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'none'"
)
# Swagger UI sets style attributes and draws its icons from data URLs.
API_PAGE_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

# By ourselves: `mimetypes` asks the machine, and machines disagree about JavaScript.
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}


def serve_folder(app: FastAPI, folder: Path, *, prefix: str, policy: str) -> None:
    """Answer GET and HEAD for each file below `folder`; `index.html` for the folder itself.

    policy: the Content-Security-Policy of all of them.
    """
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not path.is_file() or any(part.startswith((".", "_")) for part in relative.parts):
            continue
        urls = [f"{prefix}/{relative.as_posix()}"]
        if relative.name == "index.html":
            address = urls[0].removesuffix("index.html")
            urls += [address, address.rstrip("/")]
        for url in filter(None, urls):
            app.add_route(
                url, _endpoint(path, policy), methods=["GET", "HEAD"], include_in_schema=False
            )


def matches(if_none_match: str, etag: str) -> bool:
    """Whether an If-None-Match header names `etag` (RFC 9110, 13.1.2: compared weakly)."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or etag in tags


def _endpoint(path: Path, policy: str) -> Callable[[Request], Awaitable[Response]]:
    media_type = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]

    async def endpoint(request: Request) -> Response:
        data = await anyio.Path(path).read_bytes()
        headers = {
            "etag": f'"{hashlib.sha256(data).hexdigest()[:32]}"',
            # Names do not change with contents: ask each time, and mostly hear 304.
            "cache-control": "no-cache",
            "content-security-policy": policy,
        }
        if matches(request.headers.get("if-none-match", ""), headers["etag"]):
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=media_type, headers=headers)

    return endpoint
